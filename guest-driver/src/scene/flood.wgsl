// A Julia set with exactly `cost` steps per pixel, so that every job costs the same.

struct Pass {
    size: vec2<u32>,
    cost: u32,
    frame: u32,
}

@group(0) @binding(0) var<uniform> settings: Pass;
@group(0) @binding(1) var shown: texture_storage_2d<rgba8unorm, write>;

@compute @workgroup_size(8, 8)
fn main(@builtin(global_invocation_id) gid: vec3<u32>) {
    if any(gid.xy >= settings.size) { return; }
    let size = vec2<f32>(settings.size);
    let time = f32(settings.frame % 36000u) * 0.002;
    let c = vec2(-0.745 + 0.06 * cos(time), 0.13 + 0.09 * sin(1.3 * time));
    var z = (vec2<f32>(gid.xy) + 0.5 - 0.5 * size) / (0.42 * size.y);
    var steps = 0.0;
    for (var i = 0u; i < max(settings.cost, 1u); i++) {
        let out_ = dot(z, z) > 64.0;
        z = select(vec2(z.x * z.x - z.y * z.y, 2.0 * z.x * z.y) + c, z, vec2(out_));
        steps += select(1.0, 0.0, out_);
    }
    let escaped = dot(z, z) > 64.0;
    let smooth_ = steps + 1.0 - log2(max(log2(max(dot(z, z), 1.001)) * 0.5, 1e-3));
    let colour = 0.5 + 0.5 * cos(vec3(3.0, 3.6, 4.4) + 0.35 * sqrt(max(smooth_, 0.0)) * 2.0);
    textureStore(shown, gid.xy, vec4(select(vec3(0.02, 0.03, 0.06), colour, escaped), 1.0));
}
