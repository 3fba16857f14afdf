"""Measurements of modelmount against what a person would use instead, on this machine, as root: `python -m bench`.

Rule of this package: every figure is taken here and now, by rounds whose order rotates, with the machine described
beside it; nothing that was not measured is printed.
"""
