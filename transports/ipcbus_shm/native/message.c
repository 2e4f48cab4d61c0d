#include "message.h"

void message_let_go(struct message *message)
{
    while (message->viewed)
        PyBuffer_Release(&message->views[--message->viewed]);
    Py_CLEAR(message->joined);
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
    Py_ssize_t count = PySequence_Size(frame);
    if (count < 0)
        return false;
    if (count > (Py_ssize_t)MOST_PARTS) {
        PyObject *nothing = PyBytes_FromStringAndSize(NULL, 0);
        message->joined = nothing ? PyObject_CallMethod(nothing, "join", "O", frame) : NULL;
        Py_XDECREF(nothing);
        return message->joined && add(message, message->joined);
    }
    for (Py_ssize_t at = 0; at < count; at++) {
        PyObject *object = PySequence_GetItem(frame, at);
        if (!object)
            return false;
        bool added = add(message, object);
        Py_DECREF(object); /* the frame keeps it */
        if (!added)
            return false;
    }
    if (!count) {
        message->parts[0] = (struct part){"", 0};
        message->count = 1;
    }
    return true;
}
