"""How much a file on a store is asked for at once: little after a seek, more the longer reading goes on."""

import io

from segray.core.io.read_ahead import LEAST, MOST, ReadAhead

DATA = bytes(range(256)) * (64 << 12)


class Asked(io.BytesIO):
    def __init__(self):
        super().__init__(DATA)
        self.sizes = []

    def read(self, size=-1):
        self.sizes.append(size)
        return super().read(size)


def test_a_whole_file_is_read_in_few_pieces_that_grow():
    asked = Asked()
    file, parts = io.BufferedReader(ReadAhead(asked), LEAST), []
    while data := file.read(30_000):
        parts.append(data)
    assert b"".join(parts) == DATA
    assert asked.sizes[:6] == [LEAST] * 5 + [LEAST * 5 // 4]
    assert (len(asked.sizes), max(asked.sizes)) == (32, MOST)


def test_a_header_and_a_packet_far_behind_cost_a_piece_each_and_a_gap_is_no_seek():
    asked = Asked()
    file = io.BufferedReader(ReadAhead(asked), LEAST)
    for at in (0, 40_000, 20 << 20, (20 << 20) + LEAST + 9_000):  # the last one continues the one before
        file.seek(at)
        assert file.read(4_000) == DATA[at : at + 4_000]
    assert asked.sizes == [LEAST] * 3
    assert file.seek(-5, io.SEEK_END) == len(DATA) - 5
    assert file.read() == DATA[-5:]
    file.seek(1)
    assert file.read(3 * LEAST) == DATA[1 : 1 + 3 * LEAST]  # also of more than a piece
