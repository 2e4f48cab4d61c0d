#define _GNU_SOURCE
#include "native.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <unistd.h>

PyTypeObject *SegmentType;

static PyObject *raise_system(const char *what)
{
    int code = errno;
    const char *remedy = code == EMFILE || code == ENFILE ? "; close some descriptors or raise 'ulimit -n'"
                         : code == ENOSPC || code == ENOMEM || code == EFBIG
                             ? "; use a smaller ring_bytes, or allow this process more memory"
                             : "";
    PyErr_Format(ChannelBroken, "%s for a shm: channel: %s%s", what, strerror(code), remedy);
    return NULL;
}

/* Reserve a file's memory, so that no later access to it can fail (SIGBUS); 0 or -1 with errno. */
static int reserve(int fd, size_t size)
{
    int done;
    do
        done = fallocate(fd, 0, 0, (off_t)size);
    while (done < 0 && errno == EINTR);
    return done;
}

/* Map the memory of a segment that has its descriptors; false with an exception set. */
static bool map(Segment *self, uint64_t ring_bytes, uint64_t capacity, bool fresh)
{
    size_t size = ring_file_size(ring_bytes, capacity);
    if (!size) {
        PyErr_SetString(PyExc_ValueError, "ring_bytes or capacity makes no sense");
        return false;
    }
    off_t length = lseek(self->memory_fd, 0, SEEK_END);
    if (length < 0) {
        raise_system("no shared memory");
        return false;
    }
    if ((uint64_t)length < size || !(fcntl(self->memory_fd, F_GET_SEALS) & F_SEAL_SHRINK)) {
        raise_damaged();
        return false;
    }
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->memory_fd, 0);
    if (memory == MAP_FAILED) {
        raise_system("the memory cannot be mapped");
        return false;
    }
    self->memory = memory;
    self->mapped = size;
    int error = fresh ? ring_format(memory, ring_bytes, capacity) : 0;
    if (error) {
        errno = error;
        raise_system("no locks");
        return false;
    }
    if (!ring_attach(&self->ring, memory, ring_bytes, capacity)) {
        raise_damaged();
        return false;
    }
    arena_attach(&self->arena, &self->ring, self->memory_fd, size);
    return true;
}

static Segment *allocate(PyTypeObject *type)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Segment *self = (Segment *)alloc(type, 0);
    if (self)
        self->memory_fd = self->receivers_bell = self->senders_bell = -1;
    return self;
}

static bool make_files(Segment *self, size_t size)
{
    self->memory_fd = memfd_create("ipcbus-shm", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (self->memory_fd < 0 || (self->receivers_bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0 ||
        (self->senders_bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0) {
        raise_system("no descriptors");
        return false;
    }
    if (reserve(self->memory_fd, size) < 0) {
        raise_system("no memory");
        return false;
    }
    /* It can grow, and neither shrink under who has it mapped nor have this changed. */
    if (fcntl(self->memory_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_SEAL) < 0) {
        raise_system("the memory cannot be sealed");
        return false;
    }
    return true;
}

PyObject *segment_create(PyObject *module, PyObject *const *args, Py_ssize_t count)
{
    (void)module;
    if (count != 2) {
        PyErr_SetString(PyExc_TypeError, "create(ring_bytes, capacity)");
        return NULL;
    }
    uint64_t ring_bytes = PyLong_AsUnsignedLongLong(args[0]);
    uint64_t capacity = PyLong_AsUnsignedLongLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
    Segment *self = allocate(SegmentType);
    if (!self)
        return NULL;
    if (make_files(self, ring_file_size(ring_bytes, capacity)) && map(self, ring_bytes, capacity, true))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static PyObject *segment_new(PyTypeObject *type, PyObject *args, PyObject *keywords)
{
    unsigned long long ring_bytes, capacity;
    int memory_fd, receivers_bell, senders_bell;
    if (keywords && PyDict_Size(keywords)) {
        PyErr_SetString(PyExc_TypeError, "Segment takes its arguments by position");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "KKiii:Segment", &ring_bytes, &capacity, &memory_fd, &receivers_bell, &senders_bell))
        return NULL;
    Segment *self = allocate(type);
    if (!self)
        return NULL;
    self->memory_fd = memory_fd;
    self->receivers_bell = receivers_bell;
    self->senders_bell = senders_bell;
    if (map(self, ring_bytes, capacity, false))
        return (PyObject *)self;
    Py_DECREF(self);
    return NULL;
}

static void segment_dealloc(Segment *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    arena_detach(&self->arena);
    if (self->memory)
        munmap(self->memory, self->mapped);
    const int files[] = {self->memory_fd, self->receivers_bell, self->senders_bell};
    for (size_t at = 0; at < 3; at++)
        if (files[at] >= 0)
            close(files[at]);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *segment_fds(Segment *self, void *closure)
{
    (void)closure;
    return Py_BuildValue("(iii)", self->memory_fd, self->receivers_bell, self->senders_bell);
}

static PyObject *segment_is_shut(Segment *self, void *closure)
{
    (void)closure;
    return PyBool_FromLong(ring_is_shut(&self->ring));
}

static PyObject *segment_shut(Segment *self, PyObject *nothing)
{
    (void)nothing;
    struct header *header = self->ring.header;
    atomic_store(&header->shut, 1);
    bell_ring(&header->to_receivers, self->receivers_bell);
    bell_ring(&header->to_senders, self->senders_bell);
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"shut", (PyCFunction)segment_shut, METH_NOARGS, "End the stream, for everybody and for ever."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef attributes[] = {
    {"fds", (getter)segment_fds, NULL, "The descriptors: of the memory, the receivers' doorbell, the senders' doorbell.", NULL},
    {"is_shut", (getter)segment_is_shut, NULL, "Whether the stream was ended.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot slots[] = {
    {Py_tp_doc, "Segment(ring_bytes, capacity, memory_fd, receivers_bell, senders_bell)\n--\n\nThe shared memory of one "
                "channel. It owns its descriptors."},
    {Py_tp_new, segment_new},
    {Py_tp_dealloc, segment_dealloc},
    {Py_tp_methods, methods},
    {Py_tp_getset, attributes},
    {0, NULL},
};

static PyType_Spec spec = {
    .name = "ipcbus_shm._native.Segment", .basicsize = sizeof(Segment), .flags = Py_TPFLAGS_DEFAULT, .slots = slots};

PyTypeObject *segment_type(PyObject *module)
{
    return (PyTypeObject *)PyType_FromModuleAndSpec(module, &spec, NULL);
}
