"""What a kernel that can refuse returns. Objects turn these into errors; nothing here compiles."""

OK = 0  # done
ABSENT = -1  # no such item; also the "nothing here" of every index array
FULL = -2  # no room; nothing was changed
PRESENT = -3  # the item is there already
INVALID = -4  # a value that the state does not allow
