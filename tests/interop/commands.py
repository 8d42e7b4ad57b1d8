# Every command and flag, with structured and with simple replies. nbdsh
# defines h and nbd; uri comes from the caller.
import random

FUA, NO_HOLE, DF, REQ_ONE, FAST = (nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_DF,
                                   nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO)
MiB = 1 << 20


def check(structured):
    h = nbd.NBD()
    h.set_request_structured_replies(structured)
    if structured:
        h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
    h.connect_uri(uri)
    h.set_strict_mode(h.get_strict_mode() & ~nbd.STRICT_FLAGS)  # FUA and DF on a read
    assert h.get_structured_replies_negotiated() == structured
    data = random.Random(1).randbytes(100001)

    for flags in (0, FUA):
        h.pwrite(data, 777, flags)
        assert h.pread(len(data), 777) == data
    assert h.pread(len(data), 777, FUA) == data
    if structured:
        assert h.pread(len(data), 777, DF) == data
        parts = []
        buf = h.pread_structured(len(data), 777, lambda b, off, state, err: parts.append(off))
        assert buf == data and parts
    h.flush()

    for flags in (0, NO_HOLE, FUA, FUA | NO_HOLE):
        h.pwrite(data, 0)
        h.zero(50000, 1000, flags)
        want = data[:1000] + bytes(50000) + data[51000:]
        assert h.pread(len(data), 0) == want, flags
    h.pwrite(data, 0)
    try:
        h.zero(50000, 1000, FAST)
        want = data[:1000] + bytes(50000) + data[51000:]
    except nbd.Error as e:
        assert e.errno == "ENOTSUP" or e.errno == "EOPNOTSUPP", e.errno
        want = data
    assert h.pread(len(data), 0) == want

    for flags in (0, FUA):
        h.pwrite(data, 0)
        h.trim(8192, 4096, flags)
        got = h.pread(len(data), 0)
        assert got == data[:4096] + bytes(8192) + data[12288:], "a trim reads as zeroes"
    if h.can_cache():
        h.cache(MiB, 0)

    # One byte at the very end, and a request of 32 MiB.
    size = h.get_size()
    h.pwrite(b"x", size - 1)
    assert h.pread(1, size - 1) == b"x"
    big = data * 335
    big = big[:32 * MiB]
    h.pwrite(big, 12345)
    assert h.pread(len(big), 12345) == big

    if structured:
        h.trim(size, 0) if size < 1 << 32 else h.trim(64 * MiB, 0)
        h.pwrite(data, MiB)
        entries = []
        h.block_status(4 * MiB, 0, lambda ctx, off, e, err: entries.extend(e))
        lengths, states = entries[0::2], entries[1::2]
        assert sum(lengths) <= 4 * MiB and all(lengths), entries
        assert states[0] == 3 and 0 in states, entries
        entries = []
        h.block_status(4 * MiB, 0, lambda ctx, off, e, err: entries.extend(e), REQ_ONE)
        assert len(entries) == 2 and entries[0] <= 4 * MiB, entries

    # Many requests in flight, answered in any order.
    bufs, cookies = [], []
    for i in range(200):
        b = bytes([i % 251 + 1]) * 4096
        cookies.append(h.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b)), i * 4096))
        bufs.append(b)
    for c in cookies:
        while not h.aio_command_completed(c):
            h.poll(-1)
    h.flush()
    assert h.pread(200 * 4096, 0) == b"".join(bufs)
    h.shutdown()


check(True)
check(False)
