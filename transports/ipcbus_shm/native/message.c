#include "message.h"

void message_let_go(struct message *message)
{
    while (message->viewed)
        PyBuffer_Release(&message->views[--message->viewed]);
    Py_CLEAR(message->kept);
}

static bool add(struct message *message, PyObject *object)
{
    struct part *part = &message->parts[message->count];
    if (PyBytes_Check(object)) {
        part->data = PyBytes_AsString(object);
        part->size = (size_t)PyBytes_Size(object);
    } else {
        Py_buffer *view = &message->views[message->viewed];
        if (PyObject_GetBuffer(object, view, PyBUF_SIMPLE) < 0)
            return false;
        message->viewed++;
        part->data = view->buf;
        part->size = (size_t)view->len;
    }
    message->size += part->size;
    message->count++;
    return true;
}

bool message_take_apart(struct message *message, PyObject *frame)
{
    message->count = 0;
    message->size = 0;
    if (!(message->kept = PySequence_Tuple(frame)))
        return false;
    Py_ssize_t count = PyTuple_Size(message->kept);
    if (count > (Py_ssize_t)MOST_PARTS) {
        PyObject *nothing = PyBytes_FromStringAndSize(NULL, 0);
        PyObject *joined = nothing ? PyObject_CallMethod(nothing, "join", "(O)", message->kept) : NULL;
        Py_XDECREF(nothing);
        Py_DECREF(message->kept);
        message->kept = joined;
        return joined && add(message, joined);
    }
    for (Py_ssize_t at = 0; at < count; at++)
        if (!add(message, PyTuple_GetItem(message->kept, at)))
            return false;
    if (!count) {
        message->parts[0] = (struct part){"", 0};
        message->count = 1;
    }
    return true;
}
