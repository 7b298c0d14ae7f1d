from __future__ import annotations

from sam3dist.data.buffers import ImageBuffers


def test_memory_is_lent_again_only_when_nothing_shares_it():
    buffers = ImageBuffers(2, 3, 4, 4)
    first = buffers.lend()
    assert first.shape == (2, 3, 4, 4)
    place = first.data_ptr()
    picture = first[1].numpy()
    del first
    assert buffers.lend().data_ptr() != place, "a picture of the batch is still looked at"
    del picture
    assert buffers.lend().data_ptr() == place
