# BERTH_CONFIGS_DIR and BERTH_MODELS_DIR come from the environment where they are not /configs and /models.
set -eu
configs=${BERTH_CONFIGS_DIR:-/configs}/engine
ls -l "$configs"
cp -fL "$configs"/* "${BERTH_MODELS_DIR:-/models}/"
