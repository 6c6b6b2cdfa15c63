"""``python -m ucmkd_fast``: the command ``ucmkd``, for launchers that want a module."""

from .cli import main

if __name__ == "__main__":
    main()
