"""Run the command line as ``python -m lit_thinkfast``."""

from lit_thinkfast.cli import main

if __name__ == "__main__":
    main()
