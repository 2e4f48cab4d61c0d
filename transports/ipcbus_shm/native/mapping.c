#include "native.h"

#include <sys/mman.h>

/* A receiver's mapping of one extent. It is private: what is written to it is seen by nobody else. */
typedef struct Mapping {
    PyObject_HEAD
    Segment *segment; /* none once it is not needed any more: it has descriptors */
    struct held held; /* no owner once the memory is this process's own */
    void *memory;
    size_t size;
    struct Mapping *older, *newer;
} Mapping;

static PyTypeObject *MappingType;

/* Extents that the mappings of a process keep from being used again; beyond, the oldest is copied and given back. There
 * are only so many, and a receiver may keep as many arrays as it wants. */
#define MOST_HELD 64

struct list {
    Mapping *oldest, *newest;
    unsigned count;
};

static struct {
    pthread_mutex_t lock; /* forks may come from threads without the interpreter's */
    struct list held;     /* whose extents are in use */
    struct list own;      /* whose memory is this process's own, but whose segments have yet to be let go of */
} live = {.lock = PTHREAD_MUTEX_INITIALIZER};

static void enlist(struct list *list, Mapping *self)
{
    self->older = list->newest;
    self->newer = NULL;
    *(list->newest ? &list->newest->newer : &list->oldest) = self;
    list->newest = self;
    list->count++;
}

static void delist(struct list *list, Mapping *self)
{
    *(self->older ? &self->older->newer : &list->oldest) = self->newer;
    *(self->newer ? &self->newer->older : &list->newest) = self->older;
    list->count--;
}

void mapping_give_back(Segment *segment, struct held *held)
{
    arena_release(&segment->arena, held);
    held->owner = NULL;
    bell_ring(&segment->ring.header->to_senders, segment->senders_bell);
}

/* Make the memory this process's own, page by page: the kernel copies a page of a private mapping when it is written to,
 * even with what is in it. Other threads may be writing to it meanwhile, so this compares and swaps. */
static void privatise(Mapping *self)
{
    unsigned char *memory = self->memory;
    for (size_t at = 0; at < self->size; at += PAGE) {
        unsigned char found = __atomic_load_n(memory + at, __ATOMIC_RELAXED);
        __atomic_compare_exchange_n(memory + at, &found, found, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    }
    delist(&live.held, self);
    enlist(&live.own, self);
    struct owner *owner = self->held.owner;
    mapping_give_back(self->segment, &self->held);
    owner_drop(owner);
}

/* Let go of the segments of those whose memory is this process's own: arrays that are kept must not keep the descriptors of
 * channels that were closed long ago. The interpreter's lock is held, too. */
static void let_go(void)
{
    while (live.own.oldest) {
        Mapping *self = live.own.oldest;
        PyObject *segment = (PyObject *)self->segment;
        delist(&live.own, self);
        self->segment = NULL;
        Py_DECREF(segment);
    }
}

/* ------------------------------------------------------------------ forks */

/* A child would go on looking at extents that its parent gives back. So before there is one, all memory becomes ours. */
static void before_fork(void)
{
    pthread_mutex_lock(&live.lock);
    while (live.held.oldest)
        privatise(live.held.oldest);
}

static void in_parent(void)
{
    pthread_mutex_unlock(&live.lock);
}

static void in_child(void)
{
    owners_forget();
    pthread_mutex_unlock(&live.lock);
}

void mapping_watch_forks(void)
{
    static bool watching;
    if (!watching)
        watching = pthread_atfork(before_fork, in_parent, in_child) == 0;
}

/* ------------------------------------------------------------------ the type */

void *mapping_map(const Segment *segment, const struct held *held)
{
    void *memory = mmap(NULL, held->size, PROT_READ | PROT_WRITE, MAP_PRIVATE, segment->arena.fd, (off_t)held->offset);
    return memory == MAP_FAILED ? NULL : memory;
}

static void mapping_dealloc(Mapping *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    pthread_mutex_lock(&live.lock);
    munmap(self->memory, self->size); /* before somebody else may write to it */
    struct owner *owner = self->held.owner;
    if (self->segment)
        delist(owner ? &live.held : &live.own, self);
    if (owner)
        mapping_give_back(self->segment, &self->held);
    pthread_mutex_unlock(&live.lock);
    owner_drop(owner);
    Py_XDECREF((PyObject *)self->segment);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static int mapping_buffer(Mapping *self, Py_buffer *view, int flags)
{
    return PyBuffer_FillInfo(view, (PyObject *)self, self->memory, (Py_ssize_t)self->size, 0, flags);
}

static PyObject *slice(PyObject *view, uint64_t from, uint64_t size)
{
    PyObject *result = NULL, *start = PyLong_FromUnsignedLongLong(from), *stop = PyLong_FromUnsignedLongLong(from + size);
    PyObject *range = start && stop ? PySlice_New(start, stop, NULL) : NULL;
    if (range)
        result = PyObject_GetItem(view, range);
    Py_XDECREF(start);
    Py_XDECREF(stop);
    Py_XDECREF(range);
    return result;
}

PyObject *mapping_frame(Segment *segment, const struct held *held, void *memory, const uint64_t *sizes, unsigned count)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(MappingType, Py_tp_alloc);
    Mapping *self = (Mapping *)alloc(MappingType, 0);
    if (!self) {
        struct held lost = *held;
        munmap(memory, held->size);
        mapping_give_back(segment, &lost);
        return NULL;
    }
    Py_INCREF((PyObject *)segment);
    self->segment = segment;
    self->held = *held;
    self->held.owner->references++;
    self->memory = memory;
    self->size = held->size;
    pthread_mutex_lock(&live.lock);
    enlist(&live.held, self);
    if (live.held.count > MOST_HELD)
        privatise(live.held.oldest);
    let_go();
    pthread_mutex_unlock(&live.lock);
    PyObject *view = PyMemoryView_FromObject((PyObject *)self);
    Py_DECREF((PyObject *)self);
    PyObject *frame = view ? PyTuple_New(count) : NULL;
    uint64_t offset = 0;
    for (unsigned at = 0; frame && at < count; at++) {
        PyObject *part = slice(view, offset, sizes[at]);
        if (!part || PyTuple_SetItem(frame, at, part) < 0)
            Py_CLEAR(frame);
        offset = extent_align(offset + sizes[at]);
    }
    Py_XDECREF(view);
    return frame;
}

static PyType_Slot slots[] = {
    {Py_tp_doc, "The memory of one large message that was received."},
    {Py_tp_dealloc, mapping_dealloc},
    {Py_bf_getbuffer, mapping_buffer},
    {0, NULL},
};

static PyType_Spec spec = {.name = "ipcbus_shm._native.Mapping",
                           .basicsize = sizeof(Mapping),
                           .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                           .slots = slots};

PyTypeObject *mapping_type(PyObject *module)
{
    return MappingType = (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
