"""`python -m gateway`, the same as the `gateway` command."""

from gateway.cli import main

# Engine processes are spawned and import this module anew; only the first one may run the command.
if __name__ == "__main__":
    main()
