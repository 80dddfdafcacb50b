/*
 * s3dlio.crc32c() without cffi, whose way into a call takes longer than the checksum of a few KiB,
 * and which always releases the GIL.  Everything else that Python calls takes its time elsewhere.
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

static PyMethodDef methods[] = {
    {"crc32c", (PyCFunction)(void (*)(void))crc32c, METH_FASTCALL | METH_KEYWORDS, crc32c_doc},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {
#ifdef Py_mod_gil
    {Py_mod_gil, Py_MOD_GIL_NOT_USED},
#endif
    {0, NULL},
};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "s3dlio._crc32c",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC
PyInit__crc32c(void)
{
    return PyModuleDef_Init(&definition);
}
