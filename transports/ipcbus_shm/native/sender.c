#include "sender.h"

#include <string.h>

#include "fault.h"
#include "lock.h"

/* ------------------------------------------------------------------ one attempt */

enum attempt { SENT, FULL, SHUT, BUSY, DAMAGED };

/* Put an entry into the ring. `until` is 0 to look only as long as it takes an owner of the lock to finish. Needs no
 * interpreter. */
static enum attempt put(Segment *segment, struct entry *entry, int64_t until)
{
    struct ring *ring = &segment->ring;
    struct header *header = ring->header;
    enum lock_result lock = until ? lock_until(&header->send_lock, until) : lock_try(&header->send_lock);
    if (lock != LOCK_TAKEN)
        return lock == LOCK_BUSY ? BUSY : DAMAGED;
    FAULT(SEND_LOCKED);
    enum attempt attempt = SHUT;
    if (!ring_is_shut(ring)) {
        enum ring_result room = ring_room(ring, ring_units(entry->size));
        attempt = room == RING_OK ? SENT : room == RING_FULL ? FULL : DAMAGED;
        if (attempt == SENT) {
            if (entry->held)
                arena_queue(&segment->arena, entry->held, ring_next_number(ring));
            ring_put(ring, entry->kind, entry->parts, entry->count, entry->said, entry->size);
        }
    }
    lock_release(&header->send_lock);
    FAULT(SEND_UNLOCKED);
    if (attempt == SENT || attempt == SHUT) /* who ended the stream may have been killed before it told anybody */
        bell_ring(&header->to_receivers, segment->receivers_bell);
    return attempt;
}

/* Tell whether the ring has room for what it says of a large message. */
static bool has_room_for_extent(struct ring *ring)
{
    return ring_has_room(ring, ring_units(sizeof(struct extent_record) + MOST_PARTS * sizeof(uint64_t)));
}

bool sender_has_room(const void *what)
{
    const struct wish *wish = what;
    const Sender *self = wish->self;
    Segment *segment = self->side.segment;
    if (self->side.closed || ring_is_shut(&segment->ring))
        return true;
    if (wish->bytes <= (size_t)self->most_inline)
        return ring_has_room(&segment->ring, ring_units(wish->bytes));
    return has_room_for_extent(&segment->ring) && arena_has_room(&segment->arena, wish->bytes, wish->most);
}

/* The same, and so much of it that the next sends find some, too. */
static bool has_plenty(const void *what)
{
    const struct wish *wish = what;
    const struct side *side = &wish->self->side;
    if (wish->bytes > (size_t)wish->self->most_inline || side->closed || ring_is_shut(&side->segment->ring))
        return sender_has_room(what);
    return ring_has_plenty(&side->segment->ring, ring_units(wish->bytes));
}

static bool raise_full(const Sender *self, size_t wanted)
{
    struct ring *ring = self->side.segment ? &self->side.segment->ring : NULL;
    if (ring && ring_depth(ring) >= ring->capacity)
        PyErr_Format(ChannelFull, "%u messages wait to be received, the channel's capacity", (unsigned)ring->capacity);
    else if (ring && wanted > (size_t)self->most_inline && has_room_for_extent(ring))
        PyErr_Format(ChannelFull,
                     "the large messages that wait to be received or are still in use leave no room for %zu bytes more; no more "
                     "than %u MiB may wait, and no more than %u messages have memory",
                     wanted, (unsigned)(MOST_WAITING >> 20), EXTENTS);
    else
        PyErr_Format(ChannelFull, "what waits to be received leaves no room for %zu bytes more; see the option ring_bytes",
                     wanted);
    return false;
}

bool sender_wait(Sender *self, size_t wanted, int64_t until)
{
    struct side *side = &self->side;
    struct wish wish = {self, wanted, MOST_WAITING};
    self->wanted = wanted;
    /* With each message that is taken there is room for one, and a look at it takes the cursor away from the receiver. */
    if (until && (side_spin(side, has_plenty, &wish, until) || sender_has_room(&wish)))
        return true;
    int64_t left = until == NEVER ? NEVER : until ? until - wait_now() : 0;
    if (left <= 0) {
        if (!side->watched)
            return raise_full(self, wanted);
        left = 0;
    }
    PyObject *seconds = left == NEVER ? Py_NewRef(Py_None) : PyFloat_FromDouble((double)left / 1e9);
    PyObject *done = seconds ? PyObject_CallFunction(self->wait, "On", seconds, (Py_ssize_t)wanted) : NULL;
    Py_XDECREF(seconds);
    if (!done)
        return false;
    bool room = done == Py_True;
    Py_DECREF(done);
    return room || left > 0 || raise_full(self, wanted);
}

bool sender_put(Sender *self, struct entry *entry, size_t wanted, int64_t until)
{
    struct side *side = &self->side;
    Segment *segment = side->segment;
    int64_t patience = 0;
    for (;;) {
        enum attempt attempt;
        if (!patience && entry->size <= LONG_COPY)
            attempt = put(segment, entry, 0);
        else {
            int64_t now = wait_now(), slice = now + NANOSECONDS / 20;
            if (!patience)
                patience = side_patience(until);
            Py_BEGIN_ALLOW_THREADS
            attempt = put(segment, entry, slice < patience ? slice : patience);
            Py_END_ALLOW_THREADS
        }
        switch (attempt) {
        case SENT:
            self->wanted = 0;
            return true;
        case DAMAGED:
            raise_damaged();
            return false;
        case SHUT:
            PyErr_SetString(ChannelClosed, "the shm: channel was shut down");
            return false;
        case BUSY:
            /* Whoever has the lock was stopped, or just lost the processor. In slices, for the sake of Ctrl-C and close. */
            if (PyErr_CheckSignals() < 0)
                return false;
            if (side->closed) {
                raise_closed();
                return false;
            }
            if (!patience)
                patience = side_patience(until);
            else if (wait_now() >= patience) {
                PyErr_SetString(ChannelFull, "another sender has been at it all the time; it was stopped, or loses the processor");
                return false;
            }
            break;
        case FULL:
            patience = 0;
            if (!sender_wait(self, wanted, until))
                return false;
            if (side->closed) {
                raise_closed();
                return false;
            }
            break;
        }
    }
}

/* ------------------------------------------------------------------ methods */

static bool send_inline(Sender *self, struct message *message, int64_t until)
{
    uint32_t sizes[MOST_PARTS];
    struct entry entry = {.kind = RECORD_INLINE, .said = (uint16_t)message->count, .size = message->size};
    if (message->count > 1) {
        for (unsigned at = 0; at < message->count; at++)
            sizes[at] = (uint32_t)message->parts[at].size;
        entry.parts[entry.count++] = (struct part){sizes, message->count * sizeof sizes[0]};
        entry.size += message->count * sizeof sizes[0];
    }
    memcpy(entry.parts + entry.count, message->parts, message->count * sizeof message->parts[0]);
    entry.count += message->count;
    return sender_put(self, &entry, entry.size, until);
}

/* The common message, which is one piece of bytes, behind a head or none, and finds room; returns what `put` does. */
static inline enum attempt put_bytes(Sender *self, size_t head, PyObject *object, size_t most)
{
    size_t size = (size_t)PyBytes_Size(object);
    if (size > most)
        return BUSY;
    struct entry entry;
    entry.kind = RECORD_INLINE;
    entry.count = 0;
    entry.said = 1;
    entry.size = head + size;
    entry.held = NULL;
    if (head)
        entry.parts[entry.count++] = (struct part){self->head, head};
    entry.parts[entry.count++] = (struct part){PyBytes_AsString(object), size};
    return put(self->side.segment, &entry, 0);
}

/* Bytes of the longest message that is put in at once. */
static size_t most_at_once(const Sender *self)
{
    return (size_t)self->most_inline < LONG_COPY ? (size_t)self->most_inline : LONG_COPY;
}

static PyObject *send(Sender *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "send(frame, timeout)");
        return NULL;
    }
    struct side *side = &self->side;
    if (!side_enter(side))
        return NULL;
    bool done = false;
    PyObject *frame = args[0];
    if (PyTuple_Check(frame) && PyTuple_Size(frame) == 1 && PyBytes_CheckExact(PyTuple_GetItem(frame, 0)) &&
        put_bytes(self, 0, PyTuple_GetItem(frame, 0), most_at_once(self)) == SENT) {
        self->wanted = 0;
        done = true;
    } else {
        struct message message;
        message.viewed = 0;
        message.kept = NULL;
        int64_t until;
        if (side_moment(args[1], &until) && message_take_apart(&message, frame)) {
            if (message.size + message.count * sizeof(uint32_t) <= (size_t)self->most_inline)
                done = send_inline(self, &message, until);
            else
                done = sender_put_large(self, &message, until);
        }
        message_let_go(&message);
    }
    side_leave(side);
    if (!done)
        return NULL;
    Py_RETURN_NONE;
}

/* Send the first of several messages, and of the others what finds room at once. */
static PyObject *send_many(Sender *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2 || !(PyList_Check(args[0]) || PyTuple_Check(args[0])) || PySequence_Size(args[0]) < 1) {
        PyErr_SetString(PyExc_TypeError, "send_many(a list or tuple of frames, timeout)");
        return NULL;
    }
    PyObject *frame = PySequence_GetItem(args[0], 0);
    PyObject *first[] = {frame, args[1]};
    PyObject *done = frame ? send(self, first, 2) : NULL;
    Py_XDECREF(frame);
    if (!done)
        return NULL;
    Py_DECREF(done);
    Py_ssize_t sent = 1;
    /* Another thread may have closed the end, or changed the list, while the first one waited. */
    for (bool room = true; room && !self->side.closed && sent < PySequence_Size(args[0]); sent += room) {
        if (!(frame = PySequence_GetItem(args[0], sent)))
            return NULL;
        PyObject *bytes = PyTuple_Check(frame) && PyTuple_Size(frame) == 1 ? PyTuple_GetItem(frame, 0) : NULL;
        room = bytes && PyBytes_CheckExact(bytes) && put_bytes(self, 0, bytes, most_at_once(self)) == SENT;
        Py_DECREF(frame);
    }
    return PyLong_FromSsize_t(sent);
}

/* Send a head and bytes, which are one part of a message, if there is room at once; False says that nothing was done. */
static PyObject *send_bytes(Sender *self, PyObject *object)
{
    if (!PyBytes_CheckExact(object) || self->side.closed)
        Py_RETURN_FALSE;
    /* Nothing in here lets go of the interpreter's lock, so the end stays open. */
    if (put_bytes(self, HEAD_BYTES, object, self->most_bytes) != SENT)
        Py_RETURN_FALSE;
    self->wanted = 0;
    self->sent_short++;
    Py_RETURN_TRUE;
}

static PyObject *bytes_sender(Sender *self, PyObject *const *args, Py_ssize_t count)
{
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "bytes_sender(head, limit)");
        return NULL;
    }
    size_t limit = PyLong_AsSize_t(args[1]);
    if (PyErr_Occurred() || !side_head(args[0], self->head))
        return NULL;
    size_t most = most_at_once(self);
    self->most_bytes = limit < most - HEAD_BYTES ? limit : most - HEAD_BYTES;
    return PyObject_GetAttrString((PyObject *)self, "send_bytes");
}

static PyObject *arm(Sender *self, PyObject *const *args, Py_ssize_t count)
{
    struct side *side = &self->side;
    struct wish wish = {self, self->wanted, MOST_WAITING};
    if (count)
        wish.bytes = PyLong_AsSize_t(args[0]);
    if (PyErr_Occurred() || !side_enter(side))
        return NULL;
    bool room = sender_has_room(&wish);
    if (!room) {
        bell_arm(&side->segment->ring.header->to_senders, BELL_DOORBELL);
        room = sender_has_room(&wish);
    }
    side_leave(side);
    return PyBool_FromLong(room);
}

static PyObject *watch(Sender *self, PyObject *nothing)
{
    (void)nothing;
    self->side.watched = true;
    Py_RETURN_NONE;
}

static PyObject *discard_oldest(Sender *self, PyObject *nothing)
{
    (void)nothing;
    struct side *side = &self->side;
    if (!side_enter(side))
        return NULL;
    Segment *segment = side->segment;
    struct header *header = segment->ring.header;
    struct wish wish = {self, self->wanted, MOST_WAITING};
    if (sender_has_room(&wish)) { /* by now; or it was not room that was missing, but a lock that a stopped process has */
        side_leave(side);
        Py_RETURN_FALSE;
    }
    struct record record;
    enum ring_result found = RING_EMPTY;
    enum lock_result lock;
    Py_BEGIN_ALLOW_THREADS
    lock = lock_try(&header->recv_lock);
    if (lock == LOCK_BUSY) /* a receiver is at it, and so makes room itself */
        lock = lock_until(&header->recv_lock, side_patience(0));
    if (lock == LOCK_TAKEN) {
        FAULT(DROP_LOCKED);
        found = ring_peek(&segment->ring, &record);
        struct extent_record where = {EXTENTS, 0};
        if (found == RING_OK) {
            if (record.kind == RECORD_EXTENT && record.size >= sizeof where)
                ring_read(&segment->ring, &record, 0, &where, sizeof where);
            ring_advance(&segment->ring, &record);
            FAULT(DROP_TAKEN);
            if (record.kind == RECORD_EXTENT && where.index < EXTENTS)
                arena_discard(&segment->arena, (uint32_t)where.index, record.number);
        }
        lock_release(&header->recv_lock);
        if (found == RING_OK)
            bell_ring(&header->to_senders, segment->senders_bell);
    }
    Py_END_ALLOW_THREADS
    side_leave(side);
    if (lock == LOCK_BROKEN || found == RING_BROKEN)
        return raise_damaged();
    return PyBool_FromLong(found == RING_OK);
}

static PyObject *close_end(Sender *self, PyObject *nothing)
{
    (void)nothing;
    side_close(&self->side, NULL);
    Py_RETURN_NONE;
}

static PyObject *new_sender(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    Segment *segment;
    PyObject *wait;
    Py_ssize_t most_inline;
    long long spin;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Sender takes its arguments by position");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "O!OnL:Sender", SegmentType, &segment, &wait, &most_inline, &spin))
        return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Sender *self = (Sender *)alloc(type, 0);
    if (!self)
        return NULL;
    Py_INCREF((PyObject *)segment);
    self->side.segment = segment;
    self->wait = Py_NewRef(wait);
    self->most_inline = most_inline;
    spin_init(&self->side.spin, spin);
    return (PyObject *)self;
}

static int traverse(Sender *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->wait);
    return 0;
}

static int clear(Sender *self)
{
    Py_CLEAR(self->wait);
    return 0;
}

static void dealloc(Sender *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    clear(self);
    side_close(&self->side, NULL);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *sent_short(Sender *self, void *nothing)
{
    (void)nothing;
    return PyLong_FromUnsignedLongLong(self->sent_short);
}

static PyMethodDef methods[] = {
    {"send", (PyCFunction)(void (*)(void))send, METH_FASTCALL, "send(frame, timeout)\n--\n\nHand over one message."},
    {"send_many", (PyCFunction)(void (*)(void))send_many, METH_FASTCALL,
     "send_many(frames, timeout)\n--\n\nHand over the first of several messages, and those that find room at once."},
    {"bytes_sender", (PyCFunction)(void (*)(void))bytes_sender, METH_FASTCALL,
     "bytes_sender(head, limit)\n--\n\nReturn send_bytes, which puts this head before at most so many bytes."},
    {"send_bytes", (PyCFunction)send_bytes, METH_O,
     "send_bytes(bytes)\n--\n\nSend a message of bytes if that can be done at once; say whether it was."},
    {"arm", (PyCFunction)(void (*)(void))arm, METH_FASTCALL,
     "arm(wanted=...)\n--\n\nHave the doorbell ring when there may be room; say whether there is some by now."},
    {"watch", (PyCFunction)watch, METH_NOARGS, "Have a send that finds no room arm the doorbell, from here on."},
    {"depth", (PyCFunction)end_depth, METH_NOARGS, "Return how many messages wait."},
    {"discard_oldest", (PyCFunction)discard_oldest, METH_NOARGS, "Drop the oldest message; say whether there was one."},
    {"close", (PyCFunction)close_end, METH_NOARGS, "Close this end. Idempotent."},
    {"abandon", (PyCFunction)end_abandon, METH_NOARGS, "Free what a forked child inherited."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"closed", (getter)end_closed, NULL, "Whether this end is closed.", NULL},
    {"sent_short", (getter)sent_short, NULL, "Messages that send_bytes has sent.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Sender(segment, wait, most_inline, spin)\n--\n\nThe sending end in one process."},
    {Py_tp_new, new_sender},
    {Py_tp_dealloc, dealloc},
    {Py_tp_traverse, traverse},
    {Py_tp_clear, clear},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec spec = {.name = "ipcbus_shm._native.Sender",
                           .basicsize = sizeof(Sender),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                           .slots = slots};

PyTypeObject *sender_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
