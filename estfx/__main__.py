"""`python -m estfx`."""

from estfx.cli import main

if __name__ == "__main__":
    main()
