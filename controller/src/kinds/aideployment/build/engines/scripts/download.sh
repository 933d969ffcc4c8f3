# MODEL_NAME and MODEL_PATH (a URL) come from the environment, as BERTH_MODELS_DIR does where it is not /models. Kubernetes expands a dollar
# that stands before a parenthesis or before another dollar: neither is written here.
set -eu
umask 022
models=${BERTH_MODELS_DIR:-/models}
# Hidden, and with an ending that LocalAI does not list. A pod has one download at a time; others may share the volume.
part=$models/.berth-part-${HOSTNAME:-pod}.keep
marker=$models/.berth-model-$MODEL_NAME.keep
child=

fail() {
  printf 'model %s: %s\n' "$MODEL_NAME" "$1" >&2
  exit 1
}

clean() {
  [ ! -d "$part" ] || chmod -R u+rwx "$part"
  rm -rf "$part"
}

trap clean EXIT
trap 'kill "$child" 2>/dev/null || true; exit 143' TERM INT

case $MODEL_NAME in
  '' | */* | .*) fail 'its name cannot be that of a file' ;;
esac
case $MODEL_PATH in
  [Hh][Tt][Tt][Pp][Ss]://*) redirects='=https' ;;
  [Hh][Tt][Tt][Pp]://*) redirects='=http,https' ;;
  *) fail 'its uri is not an http url' ;;
esac
file=${MODEL_PATH%%[?#]*}
file=${file##*/}

# What is complete: its URL, and its file where it is a single one.
url=
old=
if [ -f "$marker" ]; then
  { IFS= read -r url && IFS= read -r old; } <"$marker" || url=
fi
# Leftovers of pods that were killed.
find "$models" -maxdepth 1 -name '.berth-part-*' -mmin +720 -exec rm -rf {} +
clean

# Takes the place of its shell.
request() {
  exec curl -q --fail --silent --show-error --location --max-redirs 10 --globoff \
    --proto '=http,https' --proto-redir "$redirects" --connect-timeout 30 --speed-limit 1 --speed-time 300 \
    "$@" --url "$MODEL_PATH"
}

mark() {
  printf '%s\n%s\n' "$MODEL_PATH" "$1" >"$part"
  mv -fT "$part" "$marker"
  printf 'model %s: complete\n' "$MODEL_NAME"
}

# place FILE: the URL's content as this file of the models' directory, whole or not at all.
place() {
  if [ "$url" = "$MODEL_PATH" ] && [ "$old" = "$1" ] && [ -f "$models/$1" ]; then
    printf 'model %s: was already complete\n' "$MODEL_NAME"
    return
  fi
  request --retry 4 --retry-connrefused --output "$part" &
  child=$!
  wait "$child" || fail 'the download failed'
  [ -s "$part" ] || fail 'the download is empty'
  sync -d "$part" 2>/dev/null || true
  case $1 in
    */*) mkdir -p "$models/${1%/*}" ;;
  esac
  # From here on the old mark would speak of a file that may be gone.
  rm -f "$marker"
  mv -fT "$part" "$models/$1"
  [ -z "$old" ] || [ "$old" = "$1" ] || rm -f "$models/$old"
  mark "$1"
}
