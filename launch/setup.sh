#!/usr/bin/env bash
# Installs what is missing (Debian packages, Rust, libtorch) and builds the workspace; a second run takes seconds.
# Run by itself, or sourced by the other scripts, which call `set_up` and share what stands here: stages, logs,
# and how a failure is told. What the user's shell needs afterwards is in launch/env.sh.

set -Eeuo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT"

TARGET=${CARGO_TARGET_DIR:-target}
[[ $TARGET == /* ]] || TARGET=$ROOT/$TARGET
LOGS=$TARGET/launch-logs
RECORD=$TARGET/launch-environment # read by env.sh
mkdir -p "$LOGS"

# The one version that the crate torch-sys accepts.
TORCH_VERSION=2.13.0
TORCH_VENV=${XDG_CACHE_HOME:-$HOME/.cache}/wrn-dist/torch-$TORCH_VERSION
TORCH_REQUIREMENTS=(
    "torch==$TORCH_VERSION"   # libtorch, its headers, and the CUDA libraries it is linked to
    nvidia-cuda-crt==13.0.88  # headers that the CUDA headers beside torch include; of the same CUDA release
    numpy                     # numpy and safetensors serve the tests that compare with PyTorch
    safetensors
    pillow                    # the decoder that ours is compared with
)

DEBIAN_PACKAGES=(
    build-essential       # C++ compiler and linker, for torch-sys and our shim
    clang                 # bindgen asks it for the compiler's own include paths
    libclang-dev          # bindgen reads mpi.h with it
    libopenmpi-dev        # MPI: headers and mpicc
    openmpi-bin           # mpirun
    cmake                 # C and C++ libraries bundled in crates
    nasm                  # their assembly
    pkg-config            # finds libraries for build scripts
    git                   # cargo, and a clone's own updates
    curl                  # fetches rustup
    ca-certificates       # HTTPS of cargo, pip and curl
    python3               # asked by torch-sys where libtorch lies
    python3-venv          # a place of its own for PyTorch
    python3-pip           # installs PyTorch there
    iproute2              # network namespaces, in which tests stage several hosts
    dataset-fashion-mnist # the images of the demonstration
)

# ---- Stages, logs, failures

STAGE="start"
STAGE_BEGIN=$SECONDS
STAGE_TIMES=()
LOG=

# stage NAME: ends the stage before, and says what comes now.
stage() {
    end_stage
    STAGE=$1
    STAGE_BEGIN=$SECONDS
    echo "==> $STAGE"
}

end_stage() {
    [[ $STAGE == start ]] || STAGE_TIMES+=("$(printf '%6d s  %s' $((SECONDS - STAGE_BEGIN)) "$STAGE")")
    STAGE=start
}

say() { echo "    $*"; }

# logged NAME COMMAND…: the command's output goes to a file, of which a failure shows the end.
logged() {
    LOG=$LOGS/$1.log
    shift
    "$@" >"$LOG" 2>&1 </dev/null
    LOG=
}

# fail SENTENCE: a failure whose reason is known.
fail() {
    trap - ERR
    echo "$(basename "$0"): $*" >&2
    exit 1
}

# Any other command that fails ends the script here.
stopped() {
    local code=$1
    trap - ERR
    # A subshell's failure is told once, by the shell that waits for it.
    ((BASH_SUBSHELL == 0)) || exit "$code"
    local where="the reason stands above"
    if [[ -n $LOG ]]; then
        tail -n 30 "$LOG" >&2
        where="the whole output is in $LOG"
    fi
    echo "$(basename "$0"): stopped at \"$STAGE\" with exit code $code; $where." >&2
    exit "$code"
}
trap 'stopped $?' ERR

# ---- Debian packages

install_debian_packages() {
    stage "Debian packages"
    if ! command -v dpkg-query >/dev/null; then
        say "This is not Debian. Going on as if these were there under other names: ${DEBIAN_PACKAGES[*]}"
        return
    fi
    local package missing=()
    for package in "${DEBIAN_PACKAGES[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true) == installed ]] ||
            missing+=("$package")
    done
    ((${#missing[@]})) || return 0

    local as_root=()
    if ((EUID != 0)); then
        command -v sudo >/dev/null ||
            fail "these Debian packages are missing, and there is no sudo to install them;" \
                "as root, run: apt-get install ${missing[*]}"
        as_root=(sudo)
    fi
    say "installing ${missing[*]}"
    # On a machine that has just started, another apt may still hold the lock.
    local apt=(env DEBIAN_FRONTEND=noninteractive apt-get -y -o DPkg::Lock::Timeout=300)
    # Asks for the password while the output is still on the terminal.
    ((EUID == 0)) || sudo true
    logged apt-update "${as_root[@]}" "${apt[@]}" update
    logged apt-install "${as_root[@]}" "${apt[@]}" install --no-install-recommends "${missing[@]}"
}

# ---- Rust

# not_older WANTED FOUND: compares version numbers.
not_older() { printf '%s\n' "$1" "$2" | sort --version-sort --check=silent; }

# cargo_version CARGO: its version, or nothing when it does not run.
cargo_version() { [[ -z $1 ]] || "$1" --version 2>/dev/null | cut -d' ' -f2 || true; }

# Sets CARGO_FOLDER to the folder of a cargo that is new enough: the user's own, else rustup's.
find_cargo() {
    local candidate version
    for candidate in "$(command -v cargo || true)" "${CARGO_HOME:-$HOME/.cargo}/bin/cargo"; do
        version=$(cargo_version "$candidate")
        if [[ -n $version ]] && not_older "$RUST_VERSION" "$version"; then
            CARGO_FOLDER=$(dirname "$candidate")
            return
        fi
    done
    return 1
}

install_rust() {
    RUST_VERSION=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    stage "Rust $RUST_VERSION or newer"
    if find_cargo; then
        return
    fi
    local found rustup
    found=$(cargo_version "$(command -v cargo || true)")
    [[ -n $found ]] && found="cargo here is $found" || found="there is no cargo here"
    rustup=$(command -v rustup || echo "${CARGO_HOME:-$HOME/.cargo}/bin/rustup")
    if [[ -x $rustup ]]; then
        say "$found: installing the stable toolchain with rustup, and choosing it for this clone only"
        logged rustup "$rustup" toolchain install stable --profile default
        logged rustup-override "$rustup" override set stable --path "$ROOT"
    else
        say "$found: installing Rust with rustup under your home directory; shell profiles are left alone"
        logged rustup-fetch curl --proto '=https' --tlsv1.2 -fsSL -o "$LOGS/rustup-init.sh" https://sh.rustup.rs
        logged rustup env RUSTUP_INIT_SKIP_PATH_CHECK=yes sh "$LOGS/rustup-init.sh" -y --no-modify-path
    fi
    find_cargo || fail "rustup is done, but there is still no cargo of version $RUST_VERSION or newer." \
        "Is RUSTUP_TOOLCHAIN set?"
}

# ---- libtorch

# libtorch_version FOLDER: of an unpacked libtorch, or of PyTorch's own folder.
libtorch_version() {
    [[ -e $1/lib/libtorch.so ]] || return 0
    if [[ -r $1/build-version ]]; then
        cut -d+ -f1 "$1/build-version"
    else
        sed -n 's/^#define TORCH_VERSION_\(MAJOR\|MINOR\|PATCH\) //p' "$1/include/torch/headeronly/version.h" |
            paste -sd.
    fi
}

# Prints the folder of the active Python if it has the right PyTorch. torch-sys asks the same interpreter.
active_pytorch() {
    local python=python3
    [[ -z ${VIRTUAL_ENV:-} ]] || python=python
    "$python" - "$TORCH_VERSION" 2>/dev/null <<'PYTHON'
import importlib.metadata, os, sys
if importlib.metadata.version("torch").split("+")[0] != sys.argv[1]:
    sys.exit(1)
print(os.path.dirname(sys.executable))
PYTHON
}

# Whether everything is in the virtual environment and can be loaded.
venv_is_complete() {
    [[ -x $TORCH_VENV/bin/python3 ]] || return 1
    "$TORCH_VENV/bin/python3" - "${TORCH_REQUIREMENTS[@]}" 2>/dev/null <<'PYTHON'
import importlib.metadata, sys
for requirement in sys.argv[1:]:
    name, _, version = requirement.partition("==")
    installed = importlib.metadata.version(name).split("+")[0]
    if version and installed != version:
        sys.exit(1)
import torch.utils.cpp_extension, numpy, safetensors
PYTHON
}

# The marker names what was installed. It is written last: a virtual environment without it was interrupted.
make_venv() {
    local marker=$TORCH_VENV/wrn-dist-complete wanted lock
    wanted=${TORCH_REQUIREMENTS[*]}
    [[ $(cat "$marker" 2>/dev/null || true) != "$wanted" ]] || return 0

    # Two clones may be set up at the same time.
    mkdir -p "$(dirname "$TORCH_VENV")"
    exec {lock}>"$TORCH_VENV.lock"
    flock "$lock"
    if ! venv_is_complete; then
        say "installing PyTorch $TORCH_VERSION into $TORCH_VENV (about 5 GB, some two minutes), for every clone"
        local python=/usr/bin/python3 clear=()
        [[ -x $python ]] || python=python3
        [[ -e $marker || ! -e $TORCH_VENV ]] || clear=(--clear)
        rm -f "$marker"
        logged venv "$python" -m venv "${clear[@]}" "$TORCH_VENV"
        logged pip "$TORCH_VENV/bin/python3" -m pip install "${TORCH_REQUIREMENTS[@]}"
        venv_is_complete || fail "PyTorch is installed in $TORCH_VENV but does not load; this says why:" \
            "$TORCH_VENV/bin/python3 -c 'import torch.utils.cpp_extension, numpy, safetensors'"
    fi
    echo "$wanted" >"$marker"
    exec {lock}>&-
}

# The line of the record that says what this clone was built with, if it was.
recorded_libtorch() { grep -s -e '^python ' -e '^libtorch ' "$RECORD" || true; }

# choice_works CHOICE: whether what a line of the record names is still there.
choice_works() {
    case $1 in
        libtorch\ *) [[ $(libtorch_version "${1#* }") == "$TORCH_VERSION" ]] ;;
        python\ *) "${1#* }/python3" -c 'import torch.utils.cpp_extension' >/dev/null 2>&1 ;;
        *) return 1 ;;
    esac
}

# Sets LIBTORCH_CHOICE to a line of the record: the user's libtorch or PyTorch if it fits, else what this clone was
# built with, else our own PyTorch.
choose_libtorch() {
    stage "libtorch $TORCH_VERSION"
    local version folder before
    before=$(recorded_libtorch)
    if [[ -n ${LIBTORCH:-} && -z ${LIBTORCH_USE_PYTORCH:-} ]]; then
        version=$(libtorch_version "$LIBTORCH")
        LIBTORCH_CHOICE="libtorch $LIBTORCH"
        [[ $version != "$TORCH_VERSION" ]] || return 0
        say "not used: LIBTORCH=$LIBTORCH, which holds ${version:-no libtorch}"
    fi
    if folder=$(active_pytorch) && [[ $folder != "$TORCH_VENV/bin" ]]; then
        LIBTORCH_CHOICE="python $folder"
        if [[ $before == "$LIBTORCH_CHOICE" ]] || choice_works "$LIBTORCH_CHOICE"; then
            return 0
        fi
        say "not used: the PyTorch of $folder, which cannot be loaded"
    fi
    LIBTORCH_CHOICE=$before
    if [[ $before != "python $TORCH_VENV/bin" ]] && choice_works "$before"; then
        return 0
    fi
    make_venv
    LIBTORCH_CHOICE="python $TORCH_VENV/bin"
}

# ---- Build

# Writes the record for env.sh and takes over its environment.
enter_environment() {
    say "using ${LIBTORCH_CHOICE#* }"
    local before
    before=$(recorded_libtorch)
    if [[ -n $before && $before != "$LIBTORCH_CHOICE" ]]; then
        # Cargo does not see that python3 is another one.
        say "earlier builds used ${before#* }: torch-sys will be built again"
        logged clean "$CARGO_FOLDER/cargo" clean --release -p torch-sys -p torch-ext
    fi
    printf '%s\n' "$LIBTORCH_CHOICE" "cargo $CARGO_FOLDER" >"$RECORD.new"
    mv "$RECORD.new" "$RECORD"
    # shellcheck source=launch/env.sh
    source launch/env.sh
}

build() {
    stage "Build"
    [[ -e $TARGET/release/wrn-dist ]] ||
        say "from nothing this takes four minutes or more on two cores, half of it for torch-sys"
    cargo build --release --workspace
}

set_up() {
    install_debian_packages
    install_rust
    choose_libtorch
    enter_environment
    build
}

if [[ ${BASH_SOURCE[0]} == "$0" ]]; then
    set_up
    end_stage
    echo "Set up. For a shell in which cargo and wrn-dist work: source $ROOT/launch/env.sh"
fi
