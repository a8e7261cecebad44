# shellcheck shell=bash
# Sourced, from bash or zsh: `source launch/env.sh` gives a shell in which plain `cargo` builds this clone and the
# built `wrn-dist` is on PATH. Repeats what launch/setup.sh found out; installs and builds nothing itself.
#
# Cargo rebuilds torch-sys, which takes minutes, when the variables below change between two of its runs. So every
# script of this folder takes them from here.

wrn_dist_environment() {
    local root=$1
    local target=${CARGO_TARGET_DIR:-target}
    case $target in /*) ;; *) target=$root/$target ;; esac
    if [ ! -r "$target/launch-environment" ]; then
        echo "launch/env.sh: this clone is not set up yet; run: bash $root/launch/setup.sh" >&2
        return 1
    fi

    local key value prefix=$target/release
    while IFS=' ' read -r key value; do
        case $key:$value in
            # On every PATH, where another MPI may stand before it.
            *:/bin | *:/usr/bin | *:/usr/local/bin) ;;
            # Folders of the cargo and of the python3 with PyTorch.
            cargo:* | python:*) prefix=$prefix:$value ;;
        esac
        case $key in
            python)
                export LIBTORCH_USE_PYTORCH=1
                unset LIBTORCH LIBTORCH_INCLUDE LIBTORCH_LIB
                ;;
            libtorch)
                export LIBTORCH=$value
                unset LIBTORCH_USE_PYTORCH
                ;;
        esac
    done <"$target/launch-environment"
    case $PATH in "$prefix":*) ;; *) export PATH=$prefix:$PATH ;; esac

    # Open MPI refuses to start as root without both.
    if [ "$(id -u)" = 0 ]; then
        export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
    fi
}

# zsh has the path of a sourced file in $0.
wrn_dist_environment "$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")/.." && pwd)"
