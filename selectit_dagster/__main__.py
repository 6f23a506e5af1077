"""``python -m selectit_dagster``: the command line, where no console script is on the path."""

from selectit_dagster.cli.main import console

if __name__ == "__main__":
    console()
