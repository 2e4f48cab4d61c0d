#include "native.h"

#include "fault.h"

#ifdef IPCBUS_SHM_FAULTS
static PyObject *plan_fault(PyObject *module, PyObject *args)
{
    const char *name;
    int signal, nth = 1;
    (void)module;
    if (!PyArg_ParseTuple(args, "si|i:plan_fault", &name, &signal, &nth))
        return NULL;
    if (fault_plan(name, signal, nth) < 0) {
        PyErr_Format(PyExc_ValueError, "no fault point %s", name);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *fault_points(PyObject *module, PyObject *nothing)
{
    (void)module, (void)nothing;
    PyObject *names = PyTuple_New(FAULTS);
    for (int at = 0; names && at < FAULTS; at++)
        if (PyTuple_SetItem(names, at, PyUnicode_FromString(fault_names[at])) < 0)
            Py_CLEAR(names);
    return names;
}
#endif

static PyMethodDef functions[] = {
    {"create", (PyCFunction)(void (*)(void))segment_create, METH_FASTCALL,
     "create(ring_bytes, capacity)\n--\n\nMake the shared memory of a new channel."},
#ifdef IPCBUS_SHM_FAULTS
    {"plan_fault", plan_fault, METH_VARARGS, "Have a signal sent to this process when it comes by a fault point."},
    {"fault_points", fault_points, METH_NOARGS, "Return the names of all fault points."},
#endif
    {NULL, NULL, 0, NULL},
};

static int add(PyObject *module, const char *name, PyTypeObject *type)
{
    return type ? PyModule_AddObjectRef(module, name, (PyObject *)type) : -1;
}

/* The types and the errors are one for the process; in another interpreter they would be the wrong ones for both. */
static bool is_of_one_interpreter(void)
{
    static int64_t first = -1;
    int64_t here = PyInterpreterState_GetID(PyInterpreterState_Get());
    if (first < 0)
        first = here;
    if (first != here)
        PyErr_SetString(PyExc_ImportError, "shm: works in one interpreter of a process, and another one has loaded it already; use "
                                           "another transport here");
    return first == here;
}

static int execute(PyObject *module)
{
    if (!is_of_one_interpreter())
        return -1;
    mapping_watch_forks();
    SegmentType = segment_type(module);
    if (errors_import() < 0 || add(module, "Segment", SegmentType) < 0 || add(module, "Sender", sender_type(module)) < 0 ||
        add(module, "Receiver", receiver_type(module)) < 0 || add(module, "Mapping", mapping_type(module)) < 0)
        return -1;
    return PyModule_AddIntConstant(module, "LEAST_RING_BYTES", PAGE) |
           PyModule_AddIntConstant(module, "MOST_RING_BYTES", MOST_RING_BYTES);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "ipcbus_shm._native",
    .m_doc = "A ring in shared memory; see layout.h.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
