"""Making Python objects in place: instances with slots, tuples and text, in C.

Used by `_typed_data.pyx` and `_codec.pyx`.
"""

from cpython.object cimport PyObject

# An instance of a class with __slots__ is made without a call, and its slots are filled in
# place. To call the class and set its attributes took a third of the time of decoding.
cdef extern from *:
    """
    #include <structmember.h>

    static inline PyObject *new_instance(PyObject *type) {
        return PyType_GenericAlloc((PyTypeObject *)type, 0);
    }

    /* Where a slot lies in an instance, or -1 if the class has no such slot. */
    static inline Py_ssize_t slot_offset(PyObject *type, const char *name) {
        PyObject *slot = PyObject_GetAttrString(type, name);
        Py_ssize_t offset = -1;
        if (slot == NULL)
            PyErr_Clear();
        else if (Py_IS_TYPE(slot, &PyMemberDescr_Type))
            offset = ((PyMemberDescrObject *)slot)->d_member->offset;
        Py_XDECREF(slot);
        return offset;
    }

    static inline void fill_slot(PyObject *instance, Py_ssize_t offset, PyObject *value) {
        *(PyObject **)((char *)instance + offset) = Py_NewRef(value);
    }

    /* Fill a slot that may hold a value already. */
    static inline void refill_slot(PyObject *instance, Py_ssize_t offset, PyObject *value) {
        PyObject **slot = (PyObject **)((char *)instance + offset);
        Py_XSETREF(*slot, Py_NewRef(value));
    }

    /* Returns `*spare` if nobody else refers to it, not even weakly. Otherwise returns a new
       instance, which becomes `*spare`. Without a GIL two threads could take the same one, so
       all are new. */
    static inline PyObject *spare_instance(PyObject **spare, PyObject *type) {
    #ifdef Py_GIL_DISABLED
        return PyType_GenericAlloc((PyTypeObject *)type, 0);
    #else
        Py_ssize_t weak = ((PyTypeObject *)type)->tp_weaklistoffset;
        if (*spare != NULL && Py_REFCNT(*spare) == 1 && !*(PyObject **)((char *)*spare + weak))
            return Py_NewRef(*spare);
        PyObject *instance = PyType_GenericAlloc((PyTypeObject *)type, 0);
        Py_XSETREF(*spare, Py_XNewRef(instance));
        return instance;
    #endif
    }

    static inline void put_item(PyObject *tuple, Py_ssize_t index, PyObject *value) {
        PyTuple_SET_ITEM(tuple, index, Py_NewRef(value));
    }

    /* Most text is ASCII, which one vectorised pass finds out. CPython keeps the strings of one
       character and the empty one, and returns them from its own decoder. */
    static inline PyObject *decode_text(const unsigned char *data, Py_ssize_t length) {
        unsigned char bits = 0;
        for (Py_ssize_t i = 0; i < length; i++)
            bits |= data[i];
        if (bits >= 0x80 || length < 2)
            return PyUnicode_DecodeUTF8((const char *)data, length, "surrogateescape");
        PyObject *text = PyUnicode_New(length, 127);
        if (text != NULL)
            memcpy(PyUnicode_1BYTE_DATA(text), data, length);
        return text;
    }

    /* A typed memoryview would take 100 KB of code in each module. The garbage collector does not
       see into this one, so it does not clear the exporter before it is released. */
    static inline Py_buffer *writable_view(PyObject *exporter) {
        Py_buffer *view = PyMem_Calloc(1, sizeof(Py_buffer));
        if (view == NULL)
            return (Py_buffer *)PyErr_NoMemory();
        if (PyObject_GetBuffer(exporter, view, PyBUF_WRITABLE) < 0) {
            PyMem_Free(view);
            return NULL;
        }
        return view;
    }

    static inline void release_view(Py_buffer *view) {
        if (view != NULL)
            PyBuffer_Release(view);
        PyMem_Free(view);
    }

    /* Nine bits from the first and the last eight bytes of a name of at least one byte. Names
       with a common prefix differ at their ends. */
    static inline Py_ssize_t name_hash(const unsigned char *data, Py_ssize_t length) {
        uint64_t front = 0, back = 0;
        memcpy(&front, data, length < 8 ? length : 8);
        if (length > 8)
            memcpy(&back, data + length - 8, 8);
        return (front + 31 * back + length) * UINT64_C(0x9E3779B97F4A7C15) >> 55;
    }

    #ifdef Py_GIL_DISABLED
    #define HAS_GIL 0
    #else
    #define HAS_GIL 1
    #endif
    """
    object new_instance(object type)
    Py_ssize_t slot_offset(object type, const char *name)
    void fill_slot(object instance, Py_ssize_t offset, object value)
    void refill_slot(object instance, Py_ssize_t offset, object value)
    object spare_instance(PyObject **spare, object type)
    void put_item(tuple items, Py_ssize_t index, object value)
    object decode_text(const unsigned char *data, Py_ssize_t length)
    Py_ssize_t name_hash(const unsigned char *data, Py_ssize_t length)
    bint HAS_GIL
    Py_buffer *writable_view(object exporter) except NULL
    void release_view(Py_buffer *view)
