# Functions of ops/run and ops/test: find Python and make the virtual environment `.venv` of this checkout.
# They need $program (for messages) and $root (the checkout).
# shellcheck shell=sh

# Set $python to the newest Python >= 3.11 that can make virtual environments; fail if there is none.
find_python() {
    without_venv=
    for python in python3.14 python3.13 python3.12 python3.11 python3; do
        "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || continue
        if "$python" -c 'import ensurepip, venv' >/dev/null 2>&1; then return 0; fi
        : "${without_venv:=$python}"
    done
    return 1
}

# Print one line after find_python has failed: why, and which command installs it.
say_what_to_install() {
    if [ -n "$without_venv" ]; then
        problem="$without_venv cannot make a virtual environment: it has no module ensurepip"
    elif version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null); then
        problem="Python 3.11 or newer is needed, and python3 is Python $version"
    else
        problem="Python 3.11 or newer is needed, and there is no python3 on PATH"
    fi
    run="run" sudo=
    if [ "$(id -u)" != 0 ]; then
        if command -v sudo >/dev/null; then sudo="sudo "; else run="run as root"; fi
    fi
    package=$(find_python_package)
    case $package in
        "") cure="install Python 3.11 or newer with its modules venv and ensurepip" ;;
        update) cure="$run: ${sudo}apt-get update && ${sudo}apt-get install python3-venv" ;;
        none) cure="this system has no package of a newer one: use the container image (ops/IMAGE.md) or another system" ;;
        *) cure="$run: ${sudo}apt-get install $package" ;;
    esac
    printf '%s: %s; %s\n' "$program" "$problem" "$cure"
}

# Print the Debian package that brings a suitable Python with venv, after find_python has failed: nothing without apt,
# "update" if apt has no lists of packages, "none" if no package is new enough.
find_python_package() {
    command -v apt-cache >/dev/null || return 0
    default=$(find_candidate python3)
    case $default in
        "") echo update; return ;;
        3.*) minor=${default#3.}; minor=${minor%%[!0-9]*} ;;
        *) minor=0 ;;
    esac
    if [ -n "$without_venv" ]; then
        version=$("$without_venv" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        if [ "$version" = "3.$minor" ]; then echo python3-venv; return; fi
        if [ -n "$(find_candidate "python$version-venv")" ]; then echo "python$version-venv"; return; fi
    fi
    if [ "$minor" -ge 11 ]; then echo python3-venv; return; fi
    for minor in 14 13 12 11; do
        if [ -n "$(find_candidate "python3.$minor-venv")" ]; then echo "python3.$minor-venv"; return; fi
    done
    echo none
}

# Print the version of a package that apt would install; nothing if there is none.
find_candidate() {
    LC_ALL=C apt-cache policy "$1" 2>/dev/null | sed -n 's/^  Candidate: \([0-9].*\)/\1/p'
}

# install_once NAME CHANGES WHAT PIP_ARGUMENT...: install into .venv, which is made first if it is not there or not
# complete. Nothing is done if NAME is installed with the same CHANGES (a text) in this directory.
install_once() {
    stamp=$root/.venv/installed-$1
    state="$2 $root"
    what=$3
    shift 3
    _is_installed && return 0
    (
        # One process at a time. The lock is that of a directory: it needs no file, and ends with this subshell.
        exec 9<"$root/ops"
        if command -v flock >/dev/null; then flock 9; fi
        if _is_installed; then exit 0; fi
        if [ -e "$root/.venv/incomplete" ] || ! "$root/.venv/bin/python" -m pip --version >/dev/null 2>&1; then
            find_python || { say_what_to_install >&2; exit 1; }
            printf '%s: making %s with %s\n' "$program" "$root/.venv" "$("$python" --version)" >&2
            if ! "$python" -m venv --clear --without-pip "$root/.venv"; then
                printf '%s: cannot make %s: the reason is above\n' "$program" "$root/.venv" >&2
                exit 1
            fi
            : >"$root/.venv/incomplete"
            "$root/.venv/bin/python" -m ensurepip --default-pip >/dev/null || exit
        fi
        : >"$root/.venv/incomplete" || exit
        printf '%s: installing %s (a minute, this time only)\n' "$program" "$what" >&2
        if ! "$root/.venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@" >&2; then
            printf '%s: cannot install %s: the error of pip is above (pip uses HTTPS_PROXY, PIP_INDEX_URL and PIP_CERT)\n' \
                "$program" "$what" >&2
            exit 1
        fi
        printf '%s\n' "$state" >"$stamp" || exit
        rm "$root/.venv/incomplete"
    )
}

_is_installed() {
    [ ! -e "$root/.venv/incomplete" ] || return 1
    [ -e "$stamp" ] && [ "$(cat "$stamp")" = "$state" ] || return 1
    # Not after an update of the system's Python to another release: its packages are looked for elsewhere.
    "$root/.venv/bin/python" -c 'import pip' >/dev/null 2>&1
}
