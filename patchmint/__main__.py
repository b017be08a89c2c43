"""`python -m patchmint` is the `patchmint` command."""

from patchmint.cli import main

if __name__ == "__main__":
    main()
