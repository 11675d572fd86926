"""The command `claims`: the promises of the design, measured on this machine."""
