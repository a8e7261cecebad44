/* MPI_Allreduce of fp32 sums in a plain loop, as a yardstick for `wrn-dist bench allreduce`. Prints a line a size: bytes and the
 * median time in microseconds on rank 0. usage: mpirun -np N all_reduce MIN_BYTES MAX_BYTES ITERATIONS */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int compare(const void *a, const void *b) {
    double left = *(const double *)a, right = *(const double *)b;
    return (left > right) - (left < right);
}

int main(int argc, char **argv) {
    MPI_Init(&argc, &argv);
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (argc != 4) {
        MPI_Finalize();
        return 2;
    }
    size_t min = strtoull(argv[1], NULL, 10), max = strtoull(argv[2], NULL, 10);
    int iterations = atoi(argv[3]), warmup = 3;
    float *values = malloc(max), *sums = malloc(max);
    double *times = malloc(sizeof *times * iterations);
    memset(values, 0, max);
    for (size_t bytes = min; bytes <= max; bytes *= 4) {
        for (int i = 0; i < warmup + iterations; ++i) {
            MPI_Barrier(MPI_COMM_WORLD);
            double begin = MPI_Wtime();
            MPI_Allreduce(values, sums, bytes / sizeof *values, MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
            if (i >= warmup) times[i - warmup] = MPI_Wtime() - begin;
        }
        qsort(times, iterations, sizeof *times, compare);
        if (rank == 0) printf("%zu %.3f\n", bytes, 1e6 * times[iterations / 2]);
    }
    MPI_Finalize();
    return 0;
}
