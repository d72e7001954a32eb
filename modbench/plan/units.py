"""Numbers with suffixes: 300B, 1.5T, 20M, 1e21."""

from decimal import Decimal, InvalidOperation

from modbench.errors import UserError

#: The largest amount that plans compute with.
_MOST = 10**27
_SUFFIXES = {"K": 3, "M": 6, "B": 9, "G": 9, "T": 12}


def amount(text: str, name: str = "amount") -> int:
    """Parse ``text`` as an integer, exactly. K, M, B (or G) and T are 10^3, 10^6, 10^9 and 10^12, in
    either case.

    Raises:
        UserError: not a number, not whole, or above 1e27; the sentence starts with ``name``.
    """
    plain = text.strip().replace("_", "").replace(",", "")
    power = _SUFFIXES.get(plain[-1:].upper(), 0)
    try:
        number = Decimal(plain[:-1] if power else plain).scaleb(power)
        whole = _MOST + 1 if number.is_finite() and number > _MOST else int(number)
    except (InvalidOperation, ValueError, OverflowError):
        raise UserError(
            f"{name} '{text}' is not a number; write it as 300000000000, 300B, 1.5T, 20M or 3e11"
        ) from None
    if whole > _MOST:
        raise UserError(f"{name} '{text}' is too large; plans go up to 1e27")
    if whole != number:
        raise UserError(f"{name} '{text}' is not a whole number; write one")
    return whole


def shown(value: float) -> str:
    """``value`` with three significant digits and a suffix, such as 1.24B."""
    for suffix, power in (("T", 12), ("B", 9), ("M", 6), ("K", 3)):
        if abs(value) >= 0.9995 * 10**power:
            return (
                f"{value / 10**power:.3g}{suffix}" if abs(value) < 999.5 * 10**power else f"{value:.3g}"
            )
    return f"{value:.3g}"
