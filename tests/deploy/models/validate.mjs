// Custom resources on stdin (a JSON list) against the models of their operators; a line for each that is wrong.
// Run as `node --input-type=module --eval`, so that the packages of the working directory are found.
import { readFileSync } from "node:fs";

const PACKAGES = {
  "monitoring.coreos.com": "@kubernetes-models/prometheus-operator",
  "keda.sh": "@kubernetes-models/keda",
  "gateway.networking.k8s.io": "@kubernetes-models/gateway-api",
};
let wrong = 0;
for (const resource of JSON.parse(readFileSync(0, "utf8"))) {
  const { apiVersion, kind, metadata } = resource;
  const [group] = apiVersion.split("/");
  const module = await import(`${PACKAGES[group]}/${apiVersion}/${kind}`);
  try {
    new module[kind](resource).validate();
  } catch (error) {
    wrong += 1;
    process.stdout.write(`${kind} ${metadata.name}: ${error.message}\n`);
  }
}
process.exit(wrong ? 1 : 0);
