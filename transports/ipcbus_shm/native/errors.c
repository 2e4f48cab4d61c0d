#include "native.h"

PyObject *ChannelBroken, *ChannelClosed, *ChannelEmpty, *ChannelFull, *EndOfChannel;

int errors_import(void)
{
    PyObject *errors = PyImport_ImportModule("ipcbus.errors");
    if (!errors)
        return -1;
    const struct {
        const char *name;
        PyObject **where;
    } wanted[] = {
        {"ChannelBroken", &ChannelBroken}, {"ChannelClosed", &ChannelClosed}, {"ChannelEmpty", &ChannelEmpty},
        {"ChannelFull", &ChannelFull},     {"EndOfChannel", &EndOfChannel},
    };
    for (size_t at = 0; at < sizeof wanted / sizeof wanted[0]; at++) {
        Py_XDECREF(*wanted[at].where);
        *wanted[at].where = PyObject_GetAttrString(errors, wanted[at].name);
        if (!*wanted[at].where) {
            Py_DECREF(errors);
            return -1;
        }
    }
    Py_DECREF(errors);
    return 0;
}

PyObject *raise_damaged(void)
{
    PyErr_SetString(ChannelBroken, "the shared memory of a shm: channel was damaged: what it says about itself makes no sense; "
                                   "make a new channel");
    return NULL;
}

PyObject *raise_closed(void)
{
    PyErr_SetString(ChannelClosed, "this end of the shm: channel is closed");
    return NULL;
}
