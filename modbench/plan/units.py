"""Numbers with suffixes: 300B, 1.5T, 20M, 1e21."""

from decimal import Decimal, InvalidOperation

from modbench.errors import UserError

#: Powers of ten; B and G are both 10^9.
_POWERS = {"T": 12, "B": 9, "G": 9, "M": 6, "K": 3}


def amount(text: str, name: str = "amount") -> int:
    """Parse ``text`` as an integer, exactly. K, M, B (or G) and T are 10^3, 10^6, 10^9 and 10^12, in
    either case. Raise a `UserError` that starts with ``name`` for anything else."""
    plain = text.strip().replace("_", "").replace(",", "")
    power = _POWERS.get(plain[-1:].upper(), 0)
    try:
        number = Decimal(plain[:-1] if power else plain).scaleb(power)
        if number == int(number):
            return int(number)
    except (InvalidOperation, ValueError, OverflowError):
        pass
    raise UserError(f"{name} '{text}' is not a whole number; write it like 3e11 or 300B")


def shown(value: float) -> str:
    """``value`` with three significant digits and a suffix, such as 1.24B."""
    for suffix in "TBMK":
        if value >= 0.9995 * 10 ** _POWERS[suffix]:
            return f"{value / 10 ** _POWERS[suffix]:.3g}{suffix}"
    return f"{value:.3g}"
