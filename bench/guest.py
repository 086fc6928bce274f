"""What a kernel's services cost a program in a guest; `python bench/guest.py --help`. See `guest_costs.py`.

A name of its own, because mypy knows one module of each name and `tests/guest` is called `guest` already.
"""

from guest_costs import main

main()
