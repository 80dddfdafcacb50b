/*
 * What cffi cannot do for buffers of Python.
 *
 * s3dlio.crc32c() without it: cffi's way into a call takes longer than the checksum of a few KiB,
 * and always releases the GIL.  Everything else that Python calls takes its time elsewhere.
 *
 * Held, which stands between a memoryview and cffi.  CPython before 3.12.7 and 3.13.0 crashes when
 * its garbage collector finds a memoryview in a cycle, as errors with their tracebacks make them,
 * whose buffer cffi still holds: it clears the memoryview first (CPython issue 77894).  The
 * collector does not see into a Held, and so takes its memoryview for one that is in use, until
 * cffi has let go.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "s3dlio/crc32c.h"

/* Longer ones let other threads run; for less than this, to do so would take longer. */
#define MIN_RELEASE_NBYTES ((Py_ssize_t)32 << 10)

/* Sets the package's own error for a buffer of which only a part is meant; numpy says ValueError.
 */
static void
refuse_buffer(void)
{
    PyObject *errors, *kind;

    if (!PyErr_ExceptionMatches(PyExc_BufferError) && !PyErr_ExceptionMatches(PyExc_ValueError))
        return;
    PyErr_Clear();
    errors = PyImport_ImportModule("s3dlio._errors");
    kind = errors ? PyObject_GetAttrString(errors, "InvalidInputError") : NULL;
    if (kind)
        PyErr_SetString(kind, "a contiguous buffer is needed");
    Py_XDECREF(kind);
    Py_XDECREF(errors);
}

static int
get_start(PyObject *value, uint32_t *start_ret)
{
    PyObject *whole = PyNumber_Index(value);
    unsigned long start;

    if (!whole)
        return -1;
    start = PyLong_AsUnsignedLong(whole);
    Py_DECREF(whole);
    if (start == (unsigned long)-1 && PyErr_Occurred())
        return -1;
    if (start > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "value must be 0 to 2**32 - 1");
        return -1;
    }
    *start_ret = (uint32_t)start;
    return 0;
}

static PyObject *
crc32c(PyObject *module, PyObject *const *args, Py_ssize_t nargs, PyObject *names)
{
    PyObject *buffer = nargs > 0 ? args[0] : NULL;
    PyObject *value = nargs > 1 ? args[1] : NULL;
    Py_ssize_t nnames = names ? PyTuple_Size(names) : 0;
    uint32_t start = 0, result;
    Py_buffer view;

    (void)module;
    for (Py_ssize_t i = 0; i < nnames; i++) {
        PyObject *name = PyTuple_GetItem(names, i);
        PyObject **place = PyUnicode_CompareWithASCIIString(name, "buffer") == 0  ? &buffer
                           : PyUnicode_CompareWithASCIIString(name, "value") == 0 ? &value
                                                                                  : NULL;

        if (!place || *place)
            return PyErr_Format(PyExc_TypeError, "crc32c() got %s argument '%U'",
                                place ? "two values for" : "an unexpected keyword", name);
        *place = args[nargs + i];
    }
    if (!buffer || nargs > 2)
        return PyErr_Format(PyExc_TypeError,
                            "crc32c() takes a buffer and a value, 1 or 2 arguments");
    if (value && get_start(value, &start) != 0)
        return NULL;
    if (PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE) != 0) {
        refuse_buffer();
        return NULL;
    }
    if (view.len < MIN_RELEASE_NBYTES) {
        result = s3dlio_crc32c(start, view.buf, (size_t)view.len);
    } else {
        Py_BEGIN_ALLOW_THREADS;
        result = s3dlio_crc32c(start, view.buf, (size_t)view.len);
        Py_END_ALLOW_THREADS;
    }
    PyBuffer_Release(&view);
    return PyLong_FromUnsignedLong(result);
}

PyDoc_STRVAR(
    crc32c_doc,
    "crc32c($module, /, buffer, value=0)\n"
    "--\n"
    "\n"
    "Returns the CRC32C of ``buffer``, any contiguous buffer by its bytes, as an int of 32 bits.\n"
    "\n"
    "``value`` is the checksum of what came before: ``crc32c(b, crc32c(a)) == crc32c(a + b)``.  "
    "Releases the GIL\nfor 32 KiB and more.  Raises InvalidInputError for a buffer that is not "
    "contiguous, TypeError for what is none,\nand OverflowError for a value out of range.");

struct held {
    PyObject_HEAD Py_buffer view;
};

static PyObject *
held_new(PyTypeObject *type, PyObject *args, PyObject *names)
{
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    PyObject *buffer;
    struct held *self;

    if (names && PyDict_Size(names) > 0)
        return PyErr_Format(PyExc_TypeError, "Held() takes no keywords");
    if (!PyArg_ParseTuple(args, "O:Held", &buffer))
        return NULL;
    self = (struct held *)alloc(type, 0);
    if (!self)
        return NULL;
    if (PyObject_GetBuffer(buffer, &self->view, PyBUF_SIMPLE) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static void
held_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);

    PyBuffer_Release(&((struct held *)self)->view); /* does nothing for one that was never filled */
    release(self);
    Py_DECREF(type);
}

static int
held_getbuffer(PyObject *self, Py_buffer *view, int flags)
{
    const Py_buffer *own = &((struct held *)self)->view;

    return PyBuffer_FillInfo(view, self, own->buf, own->len, own->readonly, flags);
}

PyDoc_STRVAR(
    held_doc,
    "Held(buffer)\n--\n\nThe bytes of a C-contiguous buffer, hidden from the garbage collector.");

static PyType_Slot held_slots[] = {
    {Py_tp_doc, (void *)held_doc},
    {Py_tp_new, held_new},
    {Py_tp_dealloc, held_dealloc},
    {Py_bf_getbuffer, held_getbuffer},
    {0, NULL},
};

static PyType_Spec held_spec = {
    .name = "s3dlio._buffers.Held",
    .basicsize = sizeof(struct held),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = held_slots,
};

static int
add_held(PyObject *module)
{
    PyObject *type = PyType_FromSpec(&held_spec);
    int status = type ? PyModule_AddObjectRef(module, "Held", type) : -1;

    Py_XDECREF(type);
    return status;
}

static PyMethodDef methods[] = {
    {"crc32c", (PyCFunction)(void (*)(void))crc32c, METH_FASTCALL | METH_KEYWORDS, crc32c_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, add_held},
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "s3dlio._buffers",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__buffers(void)
{
    return PyModuleDef_Init(&definition);
}
