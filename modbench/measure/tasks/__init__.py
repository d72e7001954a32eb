"""modbench's own lm-eval tasks, each a folder with its YAML. Light to import, so that names can be
checked before lm-eval is loaded.
"""

from pathlib import Path

FOLDER = Path(__file__).parent

#: Chance accuracy of our tasks, by name.
CHANCE = {"modbench_cloze": 0.25}
