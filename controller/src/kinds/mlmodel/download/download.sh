# Fetches a model into the volume at $MODEL_DIR and puts it where its server reads it: $MODEL_DIR/$MODEL_NAME/<version>/...
#
# Everything comes by environment, nothing is spliced into this text:
#   MODEL_URL     where the model is; MODEL_NAME its name; MODEL_DIR where the volume is mounted
#   MODEL_FILE    name of the file in the end, where it is no archive
#   MODEL_UNPACK  "yes": an archive is unpacked; anything else: it is a file like any other
#   MODEL_MARKER  pattern of the file in an archive whose folder is the model (empty: the archive as a whole is)
#   MODEL_RENAME  name that this file of an archive gets (empty: it keeps its own)
#   MODEL_SHA256  what the downloaded file must hash to (empty: anything)
#   MODEL_SOURCE  what this download is known by: a volume that holds it already is left as it is
#   MODEL_TRIES   requests before giving up (5); MODEL_PAUSE seconds between them (5)
#
# Needs a POSIX shell, curl 7.76 or later with CA certificates, and tar (with gzip), sha256sum, awk, find, grep, od, readlink, tr.
#
# Until all is well everything happens in $MODEL_DIR/.berth, where no server looks; the last step is a rename.
set -eu
umask 022

say() { printf '%s\n' "$*" >&2; }
fail() { say "error: $*"; exit 1; }

work=$MODEL_DIR/.berth
partial=$work/partial
whole=$work/whole
unpacked=$work/unpacked
ready=$work/ready
final=$MODEL_DIR/${MODEL_NAME:?}

mkdir -p "$work" || fail "the volume cannot be written to"
if [ -d "$final" ] && [ "$(cat "$work/complete" 2>/dev/null)" = "$MODEL_SOURCE" ]; then
    say "the model is there already"
    exit 0
fi
# What an earlier try or another model left. The archive itself is worth keeping if it is the same one.
rm -rf "$unpacked" "$ready" "$final" "$work/complete"
if [ "$(cat "$work/source" 2>/dev/null)" != "$MODEL_SOURCE" ]; then
    rm -f "$partial" "$whole" "$work/validator"
    printf '%s\n' "$MODEL_SOURCE" > "$work/source" || fail "the volume cannot be written to"
fi

# A redirect must not lead from an encrypted connection to a plain one.
case $MODEL_URL in
    [hH][tT][tT][pP][sS]://*) redirects='=https' ;;
    *) redirects='=http,https,ftp,ftps' ;;
esac

# The value of a header of the last answer.
header() {
    # A redirect has headers of its own: those of the last answer count.
    [ ! -e "$work/headers" ] || tr -d '\r' < "$work/headers" | awk -v name="$1" '
        /^HTTP\// { value = "" }
        tolower(substr($0, 1, length(name) + 1)) == name ":" {
            value = substr($0, length(name) + 2); sub(/^ */, "", value)
        }
        END { print value }'
}

# One request. Goes on where the last one ended, if what is there is of the same edition of the file.
request() {
    set -- --disable --silent --show-error --fail --location --max-redirs 20 --globoff --proto-default http \
        --proto '=http,https,ftp,ftps' --proto-redir "$redirects" \
        --connect-timeout 30 --speed-limit 1 --speed-time 120 \
        --dump-header "$work/headers" --write-out '%{http_code}' --output "$partial"
    if [ -s "$partial" ]; then
        validator=$(cat "$work/validator" 2>/dev/null || true)
        if [ -n "$validator" ]; then
            set -- "$@" --continue-at - --header "If-Range: $validator"
        elif [ -n "$MODEL_SHA256" ]; then
            set -- "$@" --continue-at -
        else
            rm -f "$partial"
        fi
    fi
    rm -f "$work/headers"
    status=0
    code=$(curl "$@" -- "$MODEL_URL") || status=$?
    # What a later request can make sure of the edition by: a strong entity tag, else the date.
    validator=$(header etag)
    case $validator in '"'*) ;; *) validator=$(header last-modified) ;; esac
    case $code in 2??) printf '%s\n' "$validator" > "$work/validator" ;; esac
}

download() {
    tries=${MODEL_TRIES:-5}
    while :; do
        request
        case $status in
            0)
                # An empty body makes no file.
                [ -e "$partial" ] || : > "$partial"
                mv "$partial" "$whole"
                return
                ;;
            23) fail "the file cannot be written: is the volume full?" ;;
            35 | 51 | 53 | 54 | 58 | 59 | 60 | 66 | 77 | 80 | 82 | 83 | 90 | 91)
                fail "the server's certificate or encryption is not accepted (curl $status)" ;;
            1 | 3 | 4) fail "the URL cannot be used (curl $status)" ;;
            # The range is refused, or it is another edition of the file: from the start.
            33) rm -f "$partial" ;;
            22)
                case $code in
                    416) rm -f "$partial" ;;
                    408 | 425 | 429 | 5??) ;;
                    *) fail "the server answers $code" ;;
                esac
                ;;
        esac
        tries=$((tries - 1))
        [ "$tries" -gt 0 ] || fail "the download does not succeed (curl $status, HTTP $code)"
        say "the download broke off (curl $status, HTTP $code); it is tried again"
        sleep "${MODEL_PAUSE:-5}"
    done
}

# The kind of archive that a file is, told by its contents: URLs need not say. Nothing that a server reads as a file is gzipped.
archive() {
    case $(od -An -tx1 -N2 "$1" | tr -d ' \n') in
        1f8b) echo z ;;
        *) if [ "$(od -An -c -j257 -N5 "$1" 2>/dev/null | tr -d ' \n')" = ustar ]; then echo plain; fi ;;
    esac
}

# What is there will be as unfit the next time: whoever repairs it under the same URL is to be asked again.
unfit() {
    rm -f "$whole"
    fail "$1"
}

# The paths at one depth below $unpacked that match the marker are the arguments of `choose`.
choose() {
    if [ $# -eq 1 ]; then
        model=${1%/*}
        if [ -n "$MODEL_RENAME" ] && [ "${1##*/}" != "$MODEL_RENAME" ]; then mv "$1" "$model/$MODEL_RENAME"; fi
        mkdir -p "$ready"
        mv "$model" "$ready/1"
        return
    fi
    # Several versions side by side, each in a folder named by its number.
    parent=${1%/*}
    parent=${parent%/*}
    for found; do
        folder=${found%/*}
        case ${folder##*/} in '' | *[!0-9]*) unfit "the archive holds several models" ;; esac
        [ "${folder%/*}" = "$parent" ] || unfit "the archive holds several models"
    done
    mkdir -p "$ready"
    for found; do
        folder=${found%/*}
        mv "$folder" "$ready/${folder##*/}"
    done
}

place_archive() {
    mkdir -p "$unpacked"
    if [ "$1" = z ]; then tar -xzof "$whole" -C "$unpacked"; else tar -xof "$whole" -C "$unpacked"; fi || {
        # A whole archive is kept for the next try: then it is the volume that is short.
        if [ "$1" = z ]; then tar -tzf "$whole"; else tar -tf "$whole"; fi > /dev/null 2>&1 || rm -f "$whole"
        fail "the archive cannot be unpacked: it is broken, or the volume is full"
    }
    # Nothing but files and folders, and links among them.
    [ -z "$(find "$unpacked" ! -type f ! -type d ! -type l)" ] || unfit "the archive holds devices or pipes"
    outside=$(find "$unpacked" -type l -exec readlink {} \; | grep -e '^/' -e '\.\.' || true)
    [ -z "$outside" ] || unfit "the archive holds links that may lead out of it"
    chmod -R u+rwX,go+rX "$unpacked"
    if [ -z "$MODEL_MARKER" ]; then
        mkdir -p "$ready"
        mv "$unpacked" "$ready/1"
        return
    fi
    for below in '' '/*' '/*/*' '/*/*/*'; do
        # The pattern is the only thing that is expanded; names with spaces stay whole.
        IFS=
        # shellcheck disable=SC2086
        set -- "$unpacked"$below/$MODEL_MARKER
        unset IFS
        if [ -f "$1" ]; then
            choose "$@"
            return
        fi
    done
    unfit "the archive holds no $MODEL_MARKER"
}

place_file() {
    mkdir -p "$ready/1"
    chmod u+rw,go+r "$whole"
    # Hard-linked, so that what was downloaded is still there if the next step is interrupted.
    ln "$whole" "$ready/1/$MODEL_FILE" 2>/dev/null || mv "$whole" "$ready/1/$MODEL_FILE"
}

[ -e "$whole" ] || download
if [ -n "$MODEL_SHA256" ]; then
    sum=$(sha256sum < "$whole")
    sum=${sum%% *}
    if [ "$sum" != "$MODEL_SHA256" ]; then
        rm -f "$whole"
        fail "the file's SHA-256 is $sum"
    fi
fi
kind=
if [ "$MODEL_UNPACK" = yes ]; then kind=$(archive "$whole"); fi
if [ -n "$kind" ]; then place_archive "$kind"; else place_file; fi

sync
mv "$ready" "$final"
printf '%s\n' "$MODEL_SOURCE" > "$work/complete.new"
mv "$work/complete.new" "$work/complete"
rm -rf "$whole" "$unpacked" "$work/headers" "$work/validator"
say "the model is complete"
