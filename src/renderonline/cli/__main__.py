"""`python -m renderonline.cli` is the command `renderonline`."""

from renderonline.cli.main import main

if __name__ == "__main__":
    main()
