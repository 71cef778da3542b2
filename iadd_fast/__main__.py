"""``python -m iadd_fast`` is ``iadd-fast``."""

from iadd_fast.cli import main

if __name__ == "__main__":
    main()
