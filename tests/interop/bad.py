# Requests that the protocol refuses, past libnbd's own checks, and the error
# numbers that it prescribes. The connection must live through all of them.
import errno

FUA, NO_HOLE, DF, REQ_ONE, FAST = (nbd.CMD_FLAG_FUA, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_DF,
                                   nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO)
h = nbd.NBD()
h.add_meta_context(nbd.CONTEXT_BASE_ALLOCATION)
h.connect_uri(uri)
h.set_strict_mode(0)
size = h.get_size()
ignore = lambda *a: None


def refused(want, what, f, *args):
    try:
        f(*args)
    except nbd.Error as e:
        assert e.errnum == want, "%s: %s, want %s" % (what, e, errno.errorcode[want])
    else:
        raise AssertionError(what + " was accepted")
    h.pread(512, 0)


refused(errno.EINVAL, "read past the end", h.pread, 512, size - 511)
refused(errno.EINVAL, "read behind the end", h.pread, 512, size)
refused(errno.EINVAL, "read where offset and length overflow", h.pread, 512, 2**64 - 256)
refused(errno.ENOSPC, "write past the end", h.pwrite, bytes(512), size - 511)
refused(errno.ENOSPC, "write where offset and length overflow", h.pwrite, bytes(512), 2**64 - 256)
refused(errno.ENOSPC, "zero past the end", h.zero, 512, size)
refused(errno.ENOSPC, "zero of 2^32-512 at the end", h.zero, 2**32 - 512, size - 512)
refused(errno.EINVAL, "trim past the end", h.trim, 4096, size - 512)
refused(errno.EINVAL, "trim of 2^32-1 at the end", h.trim, 2**32 - 1, size - 1)
refused(errno.EINVAL, "status past the end", h.block_status, 4096, size, ignore)
refused(errno.EINVAL, "status of 2^32-1 at the end", h.block_status, 2**32 - 1, size - 1, ignore)
refused(errno.EINVAL, "cache past the end", h.cache, 4096, size)
refused(errno.EINVAL, "write with DF", h.pwrite, bytes(512), 0, DF)
refused(errno.EINVAL, "read with FAST_ZERO", h.pread, 512, 0, FAST)
refused(errno.EINVAL, "trim with NO_HOLE", h.trim, 512, 0, NO_HOLE)
refused(errno.EINVAL, "zero with REQ_ONE", h.zero, 512, 0, REQ_ONE)
refused(errno.EINVAL, "flush with DF", h.flush, DF)
refused(errno.EINVAL, "write with an unknown flag", h.pwrite, bytes(512), 0, 1 << 14)
h.flush(FUA)
h.shutdown()

# An export that there is not.
h = nbd.NBD()
h.set_opt_mode(True)
h.connect_uri(uri)
name = h.get_export_name()
h.opt_info()
h.set_export_name(name + "-not-there")
for f in (h.opt_info, h.opt_go):
    try:
        f()
        raise AssertionError("an unknown export was opened")
    except nbd.Error as e:
        assert e.errnum == errno.ENOENT, e
h.set_export_name(name)
h.opt_go()
assert h.get_size() == size
h.shutdown()
