"""GGUF files, the format of llama.cpp, as models: a Hugging Face folder is made of a file.

folder.py         the folder, written and read back; kept in the user's cache for later runs
architectures.py  metadata -> the fields of `config.json`, by architecture
rope.py           factors of frequencies -> the fields of `rope_scaling`
names.py          names of tensors and order of rows, there and here
tensors.py        where the tensors of a checkpoint lie in the file, and how they are turned
tokenizer.py      metadata -> tokenizer, chat template and generation settings
file.py           the file itself, read and written through the `gguf` library
"""

from weightsteer_jax.models.gguf.file import GgufFile, is_gguf, write
from weightsteer_jax.models.gguf.folder import unpacked, write_folder
from weightsteer_jax.models.gguf.names import Names, in_halves, interleaved
