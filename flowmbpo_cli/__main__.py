"""`python -m flowmbpo_cli`: the command line without the installed script."""

from flowmbpo_cli.main import main

if __name__ == "__main__":
    main()
