"""A plain reference for IndexedHeap: a dict, searched whole at every pop."""


class PlainHeap:
    def __init__(self, max_heap=False):
        self.sign = -1 if max_heap else 1
        self.entries = {}  # item -> (priority, sequence)
        self.sequence = 0

    def push(self, item, priority):
        if item in self.entries:
            raise ValueError(item)
        self.entries[item] = (priority, self.sequence)
        self.sequence += 1

    def update(self, item, priority, direction=0):
        present, sequence = self.entries[item]
        if direction * priority < direction * present:
            raise ValueError(item)
        self.entries[item] = (priority, sequence)

    def remove(self, item):
        del self.entries[item]

    def peek(self):
        if not self.entries:
            raise IndexError
        item = min(self.entries, key=lambda i: (self.sign * self.entries[i][0], self.entries[i][1]))
        return self.entries[item][0], item

    def pop(self):
        first = self.peek()
        del self.entries[first[1]]
        return first
