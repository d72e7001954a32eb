"""lm-eval's own command line with the model ``modbench``, for versions of lm-eval that read no entry
points: ``python -m modbench.cli.lm_eval --model modbench --model_args pretrained=RUN --tasks TASK``."""

import sys

from modbench.cli.messages import tell
from modbench.errors import UserError


def main() -> int:
    """Run lm-eval's command line. Return 2 for a user's mistake."""
    from lm_eval.__main__ import cli_evaluate

    import modbench.evaluate.loaded_lm  # noqa: F401  registers the model

    try:
        cli_evaluate()
    except UserError as error:
        tell(" ".join(str(error).split()))
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
