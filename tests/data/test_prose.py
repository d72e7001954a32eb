"""reStructuredText is reduced to its sentences; typography is ASCII."""

import pytest

from modbench.data.prose import reduce_rst, tidy

PAGE = """
============
Making pages
============

.. module:: some.module
   :synopsis: This synopsis is not a sentence of the page itself.

Once you've created your :doc:`data models </topics/db/models>`, call
:meth:`~django.db.models.Model.save` or ``other()`` on *every* **row** you keep_.

For example, this is how it is done in the shell::

    >>> this = "must never be kept, because it is code and not a sentence."

    What it prints is no sentence of the page, even if it looks like one.

.. code-block:: python

    # Nor may this comment be kept, although it is a sentence.

.. note:: Mind the gap.

    The `release notes <https://example.invalid/notes>`_ tell what has changed since then.

    .. code-block:: console

        $ this is a command inside a note, and so it must go as well.

.. method:: Model.save(force=False)

    Saves the row in the table that belongs to the model.

+-------+---------------------------------------------+
| A     | A table's cell may be a sentence, and goes. |
+-------+---------------------------------------------+

=====  ============================================
Row    Meaning
=====  ============================================
one    This row of a simple table must go, as well.

       Even after a blank line the table goes on until its last rule.

two    And so does this row of it, too.
=====  ============================================

* The first item of a list is a sentence that goes
  on in a second line.

    $ not a directive, but an indented quotation which is a sentence.

.. _a-target: https://example.invalid

The page ends with this last sentence.
"""


def test_sentences_survive_and_nothing_else_does():
    assert reduce_rst(PAGE).split("\n\n") == [
        "Once you've created your data models, call save or other() on every row you keep.",
        "The release notes tell what has changed since then.",
        "Saves the row in the table that belongs to the model.",
        "* The first item of a list is a sentence that goes on in a second line.",
        "$ not a directive, but an indented quotation which is a sentence.",
        "The page ends with this last sentence.",
    ]


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        (
            "See :ref:`the titled\nlink <some-label>` for more about all of it.",
            "See the titled link for more about all of it.",
        ),
        (
            "The class :class:`!Field` is not linked to any page.",
            "The class Field is not linked to any page.",
        ),
        (
            "The name ``a_b_c`` keeps its underscores in the text.",
            "The name a_b_c keeps its underscores in the text.",
        ),
        ("It is 2 * 3 * 4 that we mean by this.", "It is 2 * 3 * 4 that we mean by this."),
    ],
    ids=["titled", "unlinked", "literal", "asterisks"],
)
def test_inline_markup_leaves_its_text(markup, plain):
    assert reduce_rst(markup) == plain


def test_typography_becomes_ascii_and_blank_lines_are_single():
    assert (
        tidy("\ufeff\u201cA\u00a0 b\u2019s\u201d\u2014 c\u2026 \n\n\n\n d\t e")
        == '"A b\'s"-- c...\n\nd e'
    )
