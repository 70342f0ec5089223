"""The command line as `python -m segray`, where the folder of the environment's programs is not on PATH."""

from segray.cli import main

if __name__ == "__main__":
    main()
