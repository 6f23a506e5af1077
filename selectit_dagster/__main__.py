"""``python -m selectit_dagster``: the command line, where no console script is on the path."""

from selectit_dagster.cli.main import main

if __name__ == "__main__":
    main()
