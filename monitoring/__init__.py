"""Prometheus' rules, Alertmanager's routes and Grafana's dashboards; see docs/monitoring.md."""
