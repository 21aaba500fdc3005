"""IFD over the tokens that the instruction changes most: `s-ifd:MODEL.gguf`, `s-ifd:FOLDER`. Nothing is paid.

After arXiv 2506.01317: what each figure is, `graders/local/measures.py` says; how it is measured,
`graders/local/likelihood.py`.
"""

from alpasift.graders.local.likelihood import likelihood_kind

KIND = likelihood_kind("s-ifd")
