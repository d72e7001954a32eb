"""Numbers as people write them: 300B, 1.5T, 20M, 1e21."""

from decimal import Decimal, InvalidOperation

from modbench.errors import UserError

_SUFFIXES = {"K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
#: Digits of the largest number that is taken: beyond it is a slip of the hand, and 1e999999999 would not
#: end.
_MOST_DIGITS = 60


def amount(text: str, name: str = "amount") -> int:
    """``text`` as an integer, exactly. K, M, B (or G) and T are 10^3, 10^6, 10^9 and 10^12; small
    letters mean the same.

    Raises:
        UserError: no number, or none that is whole. ``name`` says of what.
    """
    plain = text.strip().replace("_", "").replace(",", "")
    power = _SUFFIXES.get(plain[-1:].upper(), 0)
    try:
        number = Decimal(plain[:-1] if power else plain)
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or number.adjusted() + power > _MOST_DIGITS:
        raise UserError(
            f"{name} '{text}' is not a number; write it as 300000000000, 300B, 1.5T, 20M or 3e11"
        )
    # Not by arithmetic, which rounds to the context's digits.
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int)
    exponent += power
    whole = int("".join(map(str, digits)))
    if exponent >= 0:
        whole *= 10**exponent
    elif whole % 10 ** min(-exponent, len(digits) + 1):
        raise UserError(f"{name} '{text}' is not a whole number; write one")
    else:
        whole = whole // 10**-exponent if whole else 0
    return -whole if sign else whole


def shown(value: float) -> str:
    """Three significant digits with a suffix, for tables: 1.24B."""
    for suffix, power in (("T", 12), ("B", 9), ("M", 6), ("K", 3)):
        if abs(value) >= 0.9995 * 10**power:
            return (
                f"{value / 10**power:.3g}{suffix}" if abs(value) < 999.5 * 10**power else f"{value:.3g}"
            )
    return f"{value:.3g}"
