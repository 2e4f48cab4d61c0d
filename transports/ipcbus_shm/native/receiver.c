#include "native.h"

#include <errno.h>
#include <string.h>

#include "fault.h"
#include "lock.h"

/* The receiving end in one process. */
typedef struct {
    PyObject_HEAD
    struct side side;
    uint64_t max_message;
    int set; /* that listens to the doorbell, once this end is watched */
    unsigned char head[HEAD_BYTES]; /* what recv_bytes takes away */
    unsigned long long received_short; /* messages that it has returned as bytes */
} Receiver;

/* ------------------------------------------------------------------ taking */

static PyObject *damaged(struct header *header)
{
    lock_release(&header->recv_lock);
    return raise_damaged();
}

/* Copy bytes out of a record into an object that was made for them. The lock is held. */
static void copy(struct ring *ring, const struct record *record, size_t offset, PyObject *into, size_t size)
{
    char *bytes = PyBytes_AsString(into);
    if (size > LONG_COPY) {
        Py_BEGIN_ALLOW_THREADS
        ring_read(ring, record, offset, bytes, size);
        Py_END_ALLOW_THREADS
    } else
        ring_read(ring, record, offset, bytes, size);
}

static void taken(Segment *segment, const struct record *record)
{
    struct header *header = segment->ring.header;
    FAULT(RECV_COPIED);
    ring_advance(&segment->ring, record);
    lock_release(&header->recv_lock);
    FAULT(RECV_UNLOCKED);
    /* Not for each message: whoever wakes up for room for one only goes back to sleep, and there may be many of them. */
    if (bell_is_armed(&header->to_senders) && ring_has_plenty(&segment->ring, 1))
        bell_answer(&header->to_senders, segment->senders_bell);
}

static PyObject *tuple_of(PyObject **parts, unsigned count)
{
    PyObject *frame = PyTuple_New(count);
    for (unsigned at = 0; at < count; at++)
        if (frame)
            PyTuple_SetItem(frame, at, parts[at]);
        else
            Py_XDECREF(parts[at]);
    return frame;
}

/* Take a message of one part behind its head as bytes. The lock is held, and released. NULL without an exception: it is
 * another message, and nothing was done. */
static PyObject *take_bytes(Receiver *self, const struct record *record)
{
    Segment *segment = self->side.segment;
    struct ring *ring = &segment->ring;
    unsigned char head[HEAD_BYTES];
    if (record->parts != 1 || record->size < HEAD_BYTES || record->size > self->max_message)
        return NULL;
    ring_read(ring, record, 0, head, HEAD_BYTES);
    if (memcmp(head, self->head, HEAD_BYTES) != 0)
        return NULL;
    size_t size = record->size - HEAD_BYTES;
    PyObject *bytes = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (!bytes) {
        lock_release(&ring->header->recv_lock); /* no memory for it; it stays where it is */
        return NULL;
    }
    copy(ring, record, HEAD_BYTES, bytes, size);
    taken(segment, record);
    return bytes;
}

/* Take a message that lies in the ring itself. The lock is held, and released. */
static PyObject *take_inline(Receiver *self, const struct record *record)
{
    Segment *segment = self->side.segment;
    struct ring *ring = &segment->ring;
    struct header *header = ring->header;
    /* Only objects that no garbage collector looks at are made under the lock: a finalizer may use this very channel. */
    PyObject *parts[MOST_PARTS];
    uint32_t sizes[MOST_PARTS] = {record->size};
    size_t offset = 0, end = record->size;
    if (record->parts > 1) {
        offset = record->parts * sizeof sizes[0];
        if (offset > end)
            return damaged(header);
        ring_read(ring, record, 0, sizes, offset);
    }
    if (end > self->max_message + MOST_PARTS * sizeof sizes[0])
        return damaged(header);
    unsigned count = 0;
    for (; count < record->parts; count++) {
        if (sizes[count] > end - offset)
            break;
        if (!(parts[count] = PyBytes_FromStringAndSize(NULL, sizes[count])))
            break;
        copy(ring, record, offset, parts[count], sizes[count]);
        offset += sizes[count];
    }
    if (count < record->parts || offset != end) {
        while (count)
            Py_DECREF(parts[--count]);
        if (!PyErr_Occurred())
            return damaged(header);
        lock_release(&header->recv_lock); /* no memory for it; it stays where it is */
        return NULL;
    }
    taken(segment, record);
    return tuple_of(parts, count);
}

/* Take the bytes behind the head of a message that lies in an extent: they are copied, which costs less than to map them for
 * who would copy them. The lock is held, and released. NULL without an exception: it is another message, and nothing was done. */
static PyObject *copy_extent(Receiver *self, const struct record *record, struct held *held, const uint64_t *sizes)
{
    Segment *segment = self->side.segment;
    uint64_t offset = extent_align(HEAD_BYTES), size = sizes[1];
    if (record->parts != 2 || sizes[0] != HEAD_BYTES)
        return NULL;
    unsigned char *memory = arena_window(&segment->arena, held);
    if (!memory)
        return NULL; /* what is tried instead says why not */
    PyObject *bytes = memcmp(memory, self->head, HEAD_BYTES) == 0 ? PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size) : NULL;
    if (bytes) {
        taken(segment, record);
        char *into = PyBytes_AsString(bytes);
        Py_BEGIN_ALLOW_THREADS
        memcpy(into, memory + offset, size);
        Py_END_ALLOW_THREADS
    } else if (PyErr_Occurred())
        lock_release(&segment->ring.header->recv_lock); /* no memory for it; it stays where it is */
    arena_window_done(&segment->arena, memory, held->size);
    if (bytes)
        mapping_give_back(segment, held);
    return bytes;
}

/* Take a message that lies in an extent. The lock is held, and released. */
static PyObject *take_extent(Receiver *self, const struct record *record, bool bytes)
{
    Segment *segment = self->side.segment;
    struct header *header = segment->ring.header;
    struct extent_record where;
    struct held held;
    uint64_t sizes[MOST_PARTS], total = 0, needed = 0;
    if (record->size != sizeof where + record->parts * sizeof sizes[0])
        return damaged(header);
    ring_read(&segment->ring, record, 0, &where, sizeof where);
    ring_read(&segment->ring, record, sizeof where, sizes, record->parts * sizeof sizes[0]);
    for (unsigned at = 0; at < record->parts; at++) {
        if (sizes[at] > self->max_message)
            return damaged(header);
        total += sizes[at];
        needed = extent_align(needed) + sizes[at];
    }
    if (total != where.bytes || total > self->max_message || where.index >= EXTENTS)
        return damaged(header);
    const char *failed = NULL;
    void *memory = NULL;
    if (!self->side.owner && !(self->side.owner = owner_claim(&segment->arena)))
        failed = "received with: no claim on memory";
    else if (arena_hold(&segment->arena, self->side.owner, (uint32_t)where.index, record->number, &held) != ARENA_OK ||
             needed > held.size)
        return damaged(header);
    else {
        PyObject *copied = bytes ? copy_extent(self, record, &held, sizes) : NULL;
        if (copied || PyErr_Occurred())
            return copied;
        if (!(memory = mapping_map(segment, &held)))
            failed = "mapped";
    }
    if (failed) {
        int code = errno;
        lock_release(&header->recv_lock);
        PyErr_Format(ChannelBroken,
                     "a message of %llu bytes cannot be %s: %s; it is still in the channel: close or free something, and receive "
                     "again",
                     (unsigned long long)total, failed, strerror(code));
        return NULL;
    }
    taken(segment, record);
    return mapping_frame(segment, &held, memory, sizes, record->parts);
}

/* Take the lock of the receiving side, which only competing receivers and droppers ever have; false with an exception. */
static bool lock_side(struct side *side, int64_t until)
{
    struct header *header = side->segment->ring.header;
    enum lock_result lock = lock_try(&header->recv_lock);
    if (lock == LOCK_TAKEN)
        return true;
    for (int64_t last = lock == LOCK_BUSY ? side_patience(until) : 0; lock == LOCK_BUSY;) {
        int64_t slice = wait_now() + NANOSECONDS / 20;
        Py_BEGIN_ALLOW_THREADS
        lock = lock_until(&header->recv_lock, slice < last ? slice : last);
        Py_END_ALLOW_THREADS
        if (lock != LOCK_BUSY)
            break;
        if (PyErr_CheckSignals() < 0)
            return false;
        if (side->closed) {
            raise_closed();
            return false;
        }
        if (wait_now() >= last) {
            PyErr_SetString(ChannelEmpty, "another receiver has been at it all the time; it was stopped, or loses the processor");
            return false;
        }
    }
    if (lock == LOCK_BROKEN) {
        raise_damaged();
        return false;
    }
    return true;
}

/* Take the oldest message; as bytes where it is some behind the head, and that is asked for. NULL without an exception says
 * that there is none. */
static PyObject *take(Receiver *self, int64_t until, bool bytes)
{
    struct ring *ring = &self->side.segment->ring;
    if (!lock_side(&self->side, until))
        return NULL;
    FAULT(RECV_LOCKED);
    struct record record;
    switch (ring_peek(ring, &record)) {
    case RING_OK:
        if (record.kind != RECORD_INLINE)
            return take_extent(self, &record, bytes);
        if (bytes) {
            PyObject *taken = take_bytes(self, &record);
            if (taken || PyErr_Occurred())
                return taken;
        }
        return take_inline(self, &record);
    case RING_EMPTY:
        lock_release(&ring->header->recv_lock);
        return NULL;
    default:
        return damaged(ring->header);
    }
}

/* ------------------------------------------------------------------ waiting */

static bool has_something(const void *what)
{
    const struct side *side = what;
    return side->closed || !ring_is_empty(&side->segment->ring) || ring_is_shut(&side->segment->ring);
}

/* Sleep until there may be a message; false with an exception set. */
static bool wait_for_message(Receiver *self, int64_t until)
{
    struct side *side = &self->side;
    if (side_spin(side, has_something, side, until))
        return true;
    struct bell *bell = &side->segment->ring.header->to_receivers;
    uint32_t turn = atomic_load(&bell->turn);
    bell_arm(bell, BELL_SLEEPER);
    if (has_something(side))
        return true;
    /* A signal that came while this was spinning interrupts no sleep. */
    if (PyErr_CheckSignals() < 0)
        return false;
    int code;
    Py_BEGIN_ALLOW_THREADS
    code = bell_sleep(bell, turn, until);
    Py_END_ALLOW_THREADS
    return code != EINTR || PyErr_CheckSignals() == 0;
}

/* Make sure that no sender is in the middle of a send that began before the stream was ended, so that empty is empty. */
static bool is_drained(Receiver *self, int64_t until)
{
    struct header *header = self->side.segment->ring.header;
    enum lock_result lock = lock_try(&header->send_lock);
    for (int64_t last = side_patience(until);
         lock == LOCK_BUSY && !self->side.closed && wait_now() < last && PyErr_CheckSignals() == 0;) {
        int64_t slice = wait_now() + NANOSECONDS / 20;
        Py_BEGIN_ALLOW_THREADS
        lock = lock_until(&header->send_lock, slice < last ? slice : last);
        Py_END_ALLOW_THREADS
    }
    if (lock == LOCK_TAKEN)
        lock_release(&header->send_lock);
    return lock != LOCK_BUSY && ring_is_empty(&self->side.segment->ring);
}

/* Decide what it means that there was no message: 1 to look again, 0 to return nothing with an exception set. */
static int found_nothing(Receiver *self, int64_t until)
{
    struct side *side = &self->side;
    struct ring *ring = &side->segment->ring;
    if (side->closed) {
        raise_closed();
        return 0;
    }
    if (ring_is_shut(ring)) {
        if (is_drained(self, until))
            PyErr_SetString(EndOfChannel, "the shm: channel was shut down and is drained");
        else if (!PyErr_Occurred() && ring_is_empty(ring) && wait_now() >= until)
            PyErr_SetString(ChannelEmpty, "no message within the timeout; a sender that was stopped may still send one");
        return !PyErr_Occurred();
    }
    if (until == 0 || (until != NEVER && wait_now() >= until)) {
        if (side->watched) {
            doorbell_forget(self->set);
            bell_arm(&ring->header->to_receivers, BELL_DOORBELL);
            if (has_something(side)) {
                doorbell_ring(side->segment->receivers_bell); /* others who wait must see it, too */
                return 1;
            }
        }
        PyErr_SetString(ChannelEmpty, "no message within the timeout");
        return 0;
    }
    return wait_for_message(self, until);
}

/* ------------------------------------------------------------------ methods */

static PyObject *receive(Receiver *self, PyObject *timeout, bool bytes)
{
    struct side *side = &self->side;
    if (!side_enter(side))
        return NULL;
    int64_t until;
    PyObject *got = NULL;
    if (side_moment(timeout, &until))
        do
            got = take(self, until, bytes);
        while (!got && !PyErr_Occurred() && found_nothing(self, until));
    side_leave(side);
    return got;
}

static PyObject *recv(Receiver *self, PyObject *timeout)
{
    return receive(self, timeout, false);
}

static PyObject *recv_bytes(Receiver *self, PyObject *timeout)
{
    PyObject *got = receive(self, timeout, true);
    self->received_short += got && PyBytes_CheckExact(got);
    return got;
}

static PyObject *bytes_receiver(Receiver *self, PyObject *head)
{
    return side_head(head, self->head) ? PyObject_GetAttrString((PyObject *)self, "recv_bytes") : NULL;
}

static PyObject *ready(Receiver *self, PyObject *nothing)
{
    (void)nothing;
    struct side *side = &self->side;
    if (side->closed)
        Py_RETURN_TRUE;
    bool found = has_something(side);
    if (!found && side->watched) {
        struct bell *bell = &side->segment->ring.header->to_receivers;
        doorbell_forget(self->set);
        bell_arm(bell, BELL_DOORBELL);
        found = has_something(side);
        if (found)
            doorbell_ring(side->segment->receivers_bell);
    }
    return PyBool_FromLong(found);
}

static PyObject *watch(Receiver *self, PyObject *set)
{
    int fd = (int)PyLong_AsLong(set);
    if (PyErr_Occurred())
        return NULL;
    self->set = fd;
    self->side.watched = true;
    Py_RETURN_NONE;
}

static PyObject *close_end(Receiver *self, PyObject *nothing)
{
    (void)nothing;
    if (!self->side.closed)
        side_close(&self->side, &self->side.segment->ring.header->to_receivers);
    Py_RETURN_NONE;
}

static PyObject *new_receiver(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Segment *segment;
    unsigned long long max_message;
    long long spin;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Receiver takes its arguments by position");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!KL:Receiver", SegmentType, &segment, &max_message, &spin))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Receiver *self = (Receiver *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF((PyObject *)segment);
    self->side.segment = segment;
    self->max_message = max_message;
    spin_init(&self->side.spin, spin);
    return (PyObject *)self;
}

static void dealloc(Receiver *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    side_close(&self->side, NULL);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *received_short(Receiver *self, void *nothing)
{
    (void)nothing;
    return PyLong_FromUnsignedLongLong(self->received_short);
}

static PyMethodDef methods[] = {
    {"recv", (PyCFunction)recv, METH_O, "recv(timeout)\n--\n\nTake the oldest message."},
    {"bytes_receiver", (PyCFunction)bytes_receiver, METH_O,
     "bytes_receiver(head)\n--\n\nReturn recv_bytes, which takes this head away from where it is."},
    {"recv_bytes", (PyCFunction)recv_bytes, METH_O,
     "recv_bytes(timeout)\n--\n\nTake the oldest message: what is behind the head as bytes, else a frame."},
    {"ready", (PyCFunction)ready, METH_NOARGS, "Tell whether there is a message or an end; if not and watched, arm the doorbell."},
    {"watch", (PyCFunction)watch, METH_O,
     "watch(epoll)\n--\n\nHave calls that find nothing arm the doorbell, from here on, and this set forget what it heard of it."},
    {"depth", (PyCFunction)end_depth, METH_NOARGS, "Return how many messages wait."},
    {"close", (PyCFunction)close_end, METH_NOARGS, "Close this end. Idempotent."},
    {"abandon", (PyCFunction)end_abandon, METH_NOARGS, "Free what a forked child inherited."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"closed", (getter)end_closed, NULL, "Whether this end is closed.", NULL},
    {"received_short", (getter)received_short, NULL, "Messages that recv_bytes has returned as bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Receiver(segment, max_message, spin)\n--\n\nThe receiving end in one process."},
    {Py_tp_new, new_receiver},
    {Py_tp_dealloc, dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "ipcbus_shm._native.Receiver", .basicsize = sizeof(Receiver), .flags = Py_TPFLAGS_DEFAULT, .slots = slots};

PyTypeObject *receiver_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
