"""The one exception that the programs show without a traceback: what a user can mend."""

import sys


class UserError(Exception):
    """Says what is wrong, with what was expected and what was found."""


def run(main):
    """Runs a program; a UserError ends it with one line and status 2, Ctrl-C with status 130."""
    try:
        main()
    except UserError as error:
        sys.exit(_report(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _report(error):
    print(f"{sys.argv[0]}: error: {error}", file=sys.stderr)
    return 2
