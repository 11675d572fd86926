"""Files with right checksums whose contents somebody has edited."""

import copy
import io

import numpy as np

from llmds_nb._core.file_format import write


def forged(structure, arrays, header, edit):
    """The bytes of a file with an edit, (arrays, header) -> None, of a copy of its contents."""
    arrays, header = {n: np.array(a) for n, a in arrays.items()}, copy.deepcopy(header)
    edit(arrays, header)
    file = io.BytesIO()
    write(file, structure, arrays, header)
    return file.getvalue()
