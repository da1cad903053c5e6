/* total[j] += shares[0] * rows[0][j], then shares[1] * rows[1][j], ...: the weighted sum in one pass over the rows.
 *
 * What torch does in two passes, for its kernels do not read float32 and write float64 at once; the bits are equal (weighted_sum.py). Each
 * product and each sum is rounded to float64 by itself: build with -ffp-contract=off.
 */

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Columns of one tile: 64 KiB of sums stay in a core's cache while all rows go by. */
#define TILE 8192

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

#if defined(__GNUC__)
#define FETCH(ADDRESS) __builtin_prefetch(ADDRESS, 0, 3)
#else
#define FETCH(ADDRESS) ((void)(ADDRESS))
#endif

/* Of ROWS rows at a time each sum is read and written once: with one row at a time these would move eight times as many bytes through the
 * core's caches as the row does through memory. While they are added the next ROWS are fetched: a processor does that by itself only
 * within a page, of which a tile has eight. Four rows with the next four under way are as many streams as it keeps apart. */
#define ROWS 4
#define LINE_BYTES 64
#define DEFINE_ADD(NAME, REAL)                                                                                           \
    FOR_EACH_PROCESSOR static void NAME(double *restrict sums, const Py_buffer *rows, const double *shares,              \
                                        Py_ssize_t count, Py_ssize_t from, Py_ssize_t to)                                \
    {                                                                                                                    \
        enum { LINE = LINE_BYTES / sizeof(REAL) };                                                                       \
        for (Py_ssize_t start = from; start < to; start += TILE) {                                                       \
            const Py_ssize_t end = to - start < TILE ? to : start + TILE;                                                \
            Py_ssize_t i = 0;                                                                                            \
            for (; i + ROWS <= count; i += ROWS) {                                                                       \
                const REAL *row[ROWS], *next[ROWS];                                                                      \
                const int more = i + 2 * ROWS <= count;                                                                  \
                for (int k = 0; k < ROWS; k++) {                                                                         \
                    row[k] = rows[i + k].buf;                                                                            \
                    next[k] = more ? rows[i + ROWS + k].buf : row[k];                                                    \
                }                                                                                                        \
                Py_ssize_t j = start;                                                                                    \
                for (; j + LINE <= end; j += LINE) {                                                                     \
                    for (int k = 0; k < ROWS; k++)                                                                       \
                        FETCH(next[k] + j);                                                                              \
                    for (int at = 0; at < LINE; at++) {                                                                  \
                        double sum = sums[j + at];                                                                       \
                        for (int k = 0; k < ROWS; k++)                                                                   \
                            sum += shares[i + k] * (double)row[k][j + at];                                               \
                        sums[j + at] = sum;                                                                              \
                    }                                                                                                    \
                }                                                                                                        \
                for (; j < end; j++)                                                                                     \
                    for (int k = 0; k < ROWS; k++)                                                                       \
                        sums[j] += shares[i + k] * (double)row[k][j];                                                    \
            }                                                                                                            \
            for (; i < count; i++) {                                                                                     \
                const REAL *row = rows[i].buf;                                                                           \
                for (Py_ssize_t j = start; j < end; j++)                                                                 \
                    sums[j] += shares[i] * (double)row[j];                                                               \
            }                                                                                                            \
        }                                                                                                                \
    }

DEFINE_ADD(add_float32, float)
DEFINE_ADD(add_float64, double)

/* Is it a vector of this format, of `size` values? Else the error is set. */
static int is_vector(const Py_buffer *view, char format, Py_ssize_t size)
{
    if (view->format && view->format[0] == format && view->format[1] == '\0' && view->len == size * view->itemsize)
        return 1;
    PyErr_Format(PyExc_ValueError, "a vector is of format %s and %zd bytes: expected %zd values of %c", view->format ? view->format : "B",
                 view->len, size, format);
    return 0;
}

static PyObject *add(PyObject *module, PyObject *arguments)
{
    PyObject *total_object, *rows_object, *shares_object, *result = NULL;
    Py_ssize_t from, to;
    if (!PyArg_ParseTuple(arguments, "OO!O!nn", &total_object, &PyList_Type, &rows_object, &PyList_Type, &shares_object, &from, &to))
        return NULL;
    const Py_ssize_t count = PyList_GET_SIZE(rows_object);
    if (count == 0 || count != PyList_GET_SIZE(shares_object)) {
        PyErr_SetString(PyExc_ValueError, "there must be a share for each row, and one row at least");
        return NULL;
    }
    Py_buffer total;
    if (PyObject_GetBuffer(total_object, &total, PyBUF_WRITABLE | PyBUF_FORMAT) < 0)
        return NULL;
    const Py_ssize_t size = total.len / total.itemsize;
    Py_ssize_t held = 0;
    Py_buffer *rows = PyMem_Calloc(count, sizeof *rows);
    double *shares = PyMem_Calloc(count, sizeof *shares);
    if (!rows || !shares) {
        PyErr_NoMemory();
        goto done;
    }
    if (!is_vector(&total, 'd', size))
        goto done;
    if (from < 0 || to > size) {
        PyErr_Format(PyExc_ValueError, "columns %zd to %zd are not those of %zd values", from, to, size);
        goto done;
    }
    for (; held < count; held++) {
        shares[held] = PyFloat_AsDouble(PyList_GET_ITEM(shares_object, held));
        if (PyErr_Occurred() || PyObject_GetBuffer(PyList_GET_ITEM(rows_object, held), &rows[held], PyBUF_FORMAT) < 0)
            goto done;
        const char format = rows[0].format && rows[0].format[0] == 'f' ? 'f' : 'd';
        if (!is_vector(&rows[held], format, size)) {
            held++;
            goto done;
        }
    }
    Py_BEGIN_ALLOW_THREADS
    if (rows[0].format[0] == 'f')
        add_float32(total.buf, rows, shares, count, from, to);
    else
        add_float64(total.buf, rows, shares, count, from, to);
    Py_END_ALLOW_THREADS
    result = Py_NewRef(Py_None);
done:
    for (Py_ssize_t i = 0; i < held; i++)
        PyBuffer_Release(&rows[i]);
    PyMem_Free(rows);
    PyMem_Free(shares);
    PyBuffer_Release(&total);
    return result;
}

static PyMethodDef methods[] = {
    {"add", add, METH_VARARGS, "add(total, rows, shares, start, end): in place, these columns; total a vector of float64, rows a list of float32 or float64 ones."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_weighted_sum", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__weighted_sum(void)
{
    return PyModule_Create(&module);
}
