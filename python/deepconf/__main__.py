"""`python -m deepconf`: the command line."""

from deepconf.cli import main

if __name__ == "__main__":
    main()
