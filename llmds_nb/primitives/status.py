"""What a kernel that can refuse returns: the one list of statuses, each with one meaning.

Objects turn a refusal into an error; a kernel that refuses has changed nothing. Results >= 0 may
carry a value, so that a kernel returns either an answer or a status.
"""

OK = 0  # done
ABSENT = -1  # no such item; also the empty place of every index array
FULL = -2  # no capacity left
PRESENT = -3  # the item is there already
INVALID = -4  # a value that the state does not allow
GROW = -5  # an array must grow first: the object grows it and calls again
GROW_SEQUENCES = -6  # the arrays with one row per sequence must grow first, likewise
BAD_ID = -7  # an id below 0
BAD_TOKEN = -8  # a token below 0
UNEVEN = -9  # arrays that go together differ in length
REPEATED = -10  # an id is given twice
WRONG_DIRECTION = -11  # the change has the direction that this call excludes
UNKEYED = -12  # tokens lack the keys of their pages: the object puts them in and calls again
