"`python -m clm_nb` is the command `clm_nb`; written by hand: it belongs to no page"
import sys
from clm_nb.cli import main

if __name__ == "__main__": sys.exit(main())
